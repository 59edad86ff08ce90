"""Messages on a stream of bytes, such as a socket: the length of each message, then its bytes."""

from __future__ import annotations

import struct
import time
from typing import Protocol

from manyhands.errors import MessageError
from manyhands.messages.message import Message, decode, encode

_LENGTH = struct.Struct("<I")


class Stream(Protocol):
    """The methods of a socket that are used."""

    def sendall(self, data: bytes | memoryview, /) -> None:
        """Send all bytes."""
        ...

    def recv_into(self, buffer: memoryview, /) -> int:
        """Receive some bytes and return how many; 0 at the end of the stream."""
        ...

    def settimeout(self, value: float | None, /) -> None:
        """Set the seconds that a call may take."""
        ...


def send(stream: Stream, message: Message) -> int:
    """Send a message and return the number of bytes."""
    blob = encode(message)
    stream.sendall(_LENGTH.pack(len(blob)) + blob)
    return _LENGTH.size + len(blob)


def receive(stream: Stream, max_bytes: int, seconds: float) -> Message | None:
    """Receive the next message; None if the stream has ended.

    Args:
        stream: The stream.
        max_bytes: The most bytes of the message.
        seconds: The most seconds that it may take.
    """
    deadline = time.monotonic() + seconds
    prefix = _read(stream, _LENGTH.size, deadline)
    if not prefix:
        return None
    (length,) = _LENGTH.unpack(prefix)
    if length > max_bytes:
        raise MessageError(f"a message of {length:,} bytes was announced; at most {max_bytes:,} are allowed")
    blob = _read(stream, length, deadline)
    if len(blob) < length:
        raise MessageError(f"the stream ended before a message of {length:,} bytes")
    return decode(blob)


def _read(stream: Stream, count: int, deadline: float) -> bytes:
    """Read ``count`` bytes, or none if the stream ends before the first."""
    buffer, received = memoryview(bytearray(count)), 0
    while received < count:
        stream.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            new = stream.recv_into(buffer[received:])
        except TimeoutError:
            raise MessageError(f"only {received:,} of {count:,} bytes arrived in time") from None
        if not new and received:
            raise MessageError(f"the stream ended after {received:,} of {count:,} bytes")
        if not new:
            return b""
        received += new
    return bytes(buffer)
