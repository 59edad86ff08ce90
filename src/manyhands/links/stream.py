"""Messages on a stream of bytes: the length of each, then itself."""

from __future__ import annotations

import struct
import time
from typing import Protocol

from manyhands.errors import MessageError
from manyhands.messages.message import Message, decode, encode

_LENGTH = struct.Struct("<I")


class Stream(Protocol):
    """What of a socket is used."""

    def sendall(self, data: bytes | memoryview, /) -> None:
        """Send all of it."""
        ...

    def recv_into(self, buffer: memoryview, /) -> int:
        """Receive some of it; 0 at the end."""
        ...

    def settimeout(self, value: float | None, /) -> None:
        """How long a call may take."""
        ...


def send(stream: Stream, message: Message) -> int:
    """Send a message; the bytes that this took."""
    blob = encode(message)
    stream.sendall(_LENGTH.pack(len(blob)) + blob)
    return _LENGTH.size + len(blob)


def receive(stream: Stream, most: int, seconds: float) -> Message | None:
    """The next message, of at most so many bytes and within so many seconds; None where the stream has ended."""
    deadline = time.monotonic() + seconds
    head = _read(stream, _LENGTH.size, deadline)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > most:
        raise MessageError(f"a message of {length:,} bytes was announced, {most:,} are the most")
    blob = _read(stream, length, deadline)
    if len(blob) < length:
        raise MessageError(f"the stream ended before a message of {length:,} bytes")
    return decode(blob)


def _read(stream: Stream, count: int, deadline: float) -> bytes:
    """So many bytes, or none where the stream ended before the first."""
    buffer, got = memoryview(bytearray(count)), 0
    while got < count:
        stream.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            new = stream.recv_into(buffer[got:])
        except TimeoutError:
            raise MessageError(f"only {got:,} of {count:,} bytes came in time") from None
        if not new and got:
            raise MessageError(f"the stream ended after {got:,} of {count:,} bytes")
        if not new:
            return b""
        got += new
    return bytes(buffer)
