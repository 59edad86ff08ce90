"""Calls over a network that loses, repeats and reorders frames: each call is applied exactly once and answered.

A call and its answer are sent in parts. The receiver acknowledges how many parts it has, and the sender is at most a
window ahead. Only the client asks again after a silence; the server never does. The classes here have no clock, thread
or socket: a connection brings its own.

By hand: a call that gRPC or FLARE retries may be applied twice, and a large one starts again from its first byte.
"""

from __future__ import annotations

import tempfile
import weakref
from bisect import bisect_right
from itertools import accumulate
from typing import Any

from manyhands.errors import ManyhandsError, MessageError, Reason, Refused
from manyhands.links.frame import Frame
from manyhands.links.session import Session
from manyhands.messages.message import UNBOUNDED, Bounds, Message, decode, decode_from, head_size, pieces

PART_BYTES = 1 << 20
"""The bytes of a part; the last part of a message may have fewer."""
WINDOW_PARTS = 2
"""The most parts that are sent before the receiver acknowledges them."""
MAX_WAITING_FRAMES = 4 * WINDOW_PARTS
"""The most frames of a peer that wait to be read; more are dropped, as a network may drop them."""
MAX_MEMORY_BYTES = 16 * PART_BYTES
"""A larger message is collected in a file."""


class SessionGone(ManyhandsError):  # noqa: N818 - the name of the event
    """The server does not know this session: it has restarted, or the client has begun another session."""


class SendBuffer:
    """The parts of a message to send.

    Args:
        message: The message. Its tensors are read when a part is sent, so they must not change until then.
    """

    def __init__(self, message: Message) -> None:
        self._pieces = list(pieces(message))
        self._ends = list(accumulate(map(len, self._pieces)))
        self.size = self._ends[-1]
        self.count = -(-self.size // PART_BYTES)
        self.sent = 0

    def next_parts(self, have: int, call: dict[str, Any]) -> list[Frame]:
        """Return the next parts that the window allows.

        Args:
            have: The number of parts that the receiver has.
            call: The session and the number of the call.
        """
        end = min(min(have, self.sent) + WINDOW_PARTS, self.count)
        numbers, self.sent = range(self.sent, end), max(self.sent, end)
        return [Frame({**call, "k": "part", "i": i, "size": self.size}, self._part(i)) for i in numbers]

    def _part(self, number: int) -> bytes:
        at, end = number * PART_BYTES, min((number + 1) * PART_BYTES, self.size)
        slices, index = [], bisect_right(self._ends, at)
        while at < end:
            begin = self._ends[index] - len(self._pieces[index])
            piece = self._pieces[index][at - begin : end - begin]
            slices.append(piece)
            at, index = at + len(piece), index + 1
        return b"".join(slices)


class Spool:
    """A temporary file without a name, which is deleted when no reference to it is left or the process ends."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self.file.close)

    def fileno(self) -> int:
        """Its file descriptor."""
        return self.file.fileno()


class ReceiveBuffer:
    """The received parts of a message, in any order; a large message is collected in a file.

    A message that announces more than its bounds allow is refused, and nothing of it is kept or parsed.

    Args:
        size: The announced bytes of the message.
        bounds: The largest allowed size.
    """

    def __init__(self, size: int, bounds: Bounds) -> None:
        if not 0 < size <= bounds.size:
            raise Refused(
                Reason.MALFORMED, f"a message of {size:,} bytes was announced; at most {bounds.size:,} are allowed"
            )
        self.size, self.bounds, self.count, self.have = size, bounds, -(-size // PART_BYTES), 0
        self._early: dict[int, bytes] = {}
        self._parts: list[bytes] = []
        self._spool = Spool() if size > MAX_MEMORY_BYTES else None

    def take(self, number: int, payload: bytes) -> None:
        """Accept a part; ignore one that was received before or is too far ahead."""
        if not 0 <= number < self.count:
            raise Refused(Reason.MALFORMED, f"part {number} of {self.count} was sent")
        if not self.have <= number < min(self.have + 2 * WINDOW_PARTS, self.count):
            return
        if len(payload) != min(PART_BYTES, self.size - number * PART_BYTES):
            raise Refused(Reason.MALFORMED, f"part {number} has {len(payload):,} bytes")
        if not number:
            self.bounds.check_begin(payload)
        self._early[number] = payload
        while (next_part := self._early.pop(self.have, None)) is not None:
            self._keep(next_part)
            self.have += 1

    @property
    def is_complete(self) -> bool:
        """Whether all parts have been received."""
        return self.have == self.count

    @property
    def due(self) -> bool:
        """Whether to acknowledge now: twice a window, so that the sender need not wait."""
        return not self.is_complete and self.have % (WINDOW_PARTS // 2) == 0

    def message(self) -> Message:
        """Decode the complete message."""
        if self._spool is None:
            return decode(b"".join(self._parts), self.bounds)
        self._spool.file.flush()
        return decode_from(self._parts[0], self._spool, self.bounds)

    def _keep(self, part: bytes) -> None:
        if self._spool is None:
            self._parts.append(part)
            return
        head = 0 if self._parts else head_size(part)
        if head:
            self._parts.append(part[:head])
        self._spool.file.write(part[head:])


class ClientSession:
    """The client's side of one call.

    Args:
        message: The call.
        session: The session that it is part of.
        number: The number of the call in its session, counted from 1.
        bounds: The largest allowed size of the answer.
    """

    def __init__(self, message: Message, session: str, number: int, bounds: Bounds = UNBOUNDED) -> None:
        self._call = {"s": session, "n": number}
        self._bounds = bounds
        self._out = SendBuffer(message)
        self._in: ReceiveBuffer | None = None
        self.answer: Message | None = None

    def begin(self) -> list[Frame]:
        """Return the first frames to send."""
        return self._out.next_parts(0, self._call)

    def ask_again(self) -> list[Frame]:
        """Return the frames to send after a silence."""
        return [Frame({**self._call, "k": "ask", "i": self._in.have if self._in else 0})]

    def take(self, frame: Frame) -> list[Frame]:
        """Process a frame and return the frames to send; raise ``Refused`` for a refusal or an invalid answer."""
        try:
            return self._take(frame)
        except MessageError as error:
            raise Refused(Reason.MALFORMED, f"the answer is not a valid message: {error}") from None
        except OSError as error:
            raise Refused(Reason.NOT_NOW, f"the answer cannot be stored: {error.strerror}") from None

    def _take(self, frame: Frame) -> list[Frame]:
        fields = frame.fields
        if self.answer is not None or any(fields.get(name) != value for name, value in self._call.items()):
            return []
        match fields:
            case {"k": "gone"}:
                raise SessionGone("the server has restarted, or another process uses this silo's name")
            case {"k": "refuse", "reason": str(reason), "detail": str(detail)} if reason in set(Reason):
                raise Refused(Reason(reason), detail)
            case {"k": "have", "i": int(have)}:
                return self._out.next_parts(have, self._call)
            case {"k": "want", "i": int(have)}:
                self._out.sent = min(self._out.sent, max(have, 0))
                return self._out.next_parts(have, self._call)
            case {"k": "part", "i": int(number), "size": int(size)}:
                self._in = self._in or ReceiveBuffer(size, self._bounds)
                self._in.take(number, frame.payload)
                if self._in.is_complete:
                    self.answer = self._in.message()
                return [Frame({**self._call, "k": "have", "i": self._in.have})] if self._in.due else []
        return []


class ServerSession:
    """The server's side of the calls of one client, which makes one call at a time.

    Args:
        bounds: The largest allowed size of a call.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.session = Session(first=1)
        self._in: ReceiveBuffer | None = None
        self._complete = False
        self._out: SendBuffer | None = None
        self._refusal: Refused | None = None

    def take(self, frame: Frame) -> tuple[list[Frame], Message | None]:
        """Process a frame; return the frames to send, and the call if it is complete now."""
        match frame.fields:
            case {"k": "part", "s": str(session), "n": int(number), "i": int(i), "size": int(size)}:
                return self._part(session, number, i, size, frame.payload)
            case {"k": "ask", "s": str(session), "n": int(number), "i": int(have)}:
                return self._asked(session, number, have), None
            case {"k": "have", "s": self.session.name, "n": self.session.number, "i": int(have)} if self._out:
                return self._out.next_parts(have, self._call), None
            case {"k": "have", "s": str(), "n": int(), "i": int()}:
                return [], None
        if not {"s", "n"} <= frame.fields.keys():
            return [], None
        call = {name: frame.fields[name] for name in ("s", "n")}
        reason = frame.fields.get("why", "there is no such frame")
        return [Frame({**call, **_refusal_fields(Refused(Reason.MALFORMED, reason))})], None

    def answer(self, message: Message | Refused) -> list[Frame]:
        """Answer the call and return the frames to send."""
        if isinstance(message, Refused):
            self._refusal, self._in = message, None
            return [self._refused()]
        self._out = SendBuffer(message)
        return self._out.next_parts(0, self._call)

    def forget(self) -> list[Frame]:
        """End the session and return the frame that tells the client, which must begin another one."""
        call = self._call
        self.session.retire()
        self._clear()
        return [Frame({"k": "gone", **call})] if call["s"] else []

    @property
    def _call(self) -> dict[str, Any]:
        return {"s": self.session.name, "n": self.session.number}

    def _part(self, session: str, number: int, i: int, size: int, payload: bytes) -> tuple[list[Frame], Message | None]:
        if not self.session.is_open(session, number):
            if not self.session.may_begin(session, number):
                return [Frame({"k": "gone", "s": session, "n": number})], None
            self.session.begin(session, number)
            self._clear()
        if self._refusal or self._complete:
            return [], None
        try:
            self._in = self._in or ReceiveBuffer(size, self.bounds)
            self._in.take(i, payload)
            if not self._in.is_complete:
                return [Frame({**self._call, "k": "have", "i": self._in.have})] if self._in.due else [], None
            message, self._in, self._complete = self._in.message(), None, True
            return [], message
        except MessageError as error:
            return self.answer(Refused(Reason.MALFORMED, str(error))), None
        except OSError as error:
            return self.answer(Refused(Reason.NOT_NOW, f"the call cannot be stored: {error.strerror}")), None
        except Refused as refusal:
            return self.answer(refusal), None

    def _asked(self, session: str, number: int, have: int) -> list[Frame]:
        if not self.session.is_open(session, number):
            call = {"s": session, "n": number}
            is_new = self.session.may_begin(session, number)
            return [Frame({**call, "k": "want", "i": 0} if is_new else {**call, "k": "gone"})]
        if self._refusal:
            return [self._refused()]
        if self._out:
            self._out.sent = min(self._out.sent, max(have, 0))
            return self._out.next_parts(have, self._call)
        if self._complete:
            return [Frame({**self._call, "k": "wait"})]
        return [Frame({**self._call, "k": "want", "i": self._in.have if self._in else 0})]

    def _clear(self) -> None:
        self._in = self._out = self._refusal = None
        self._complete = False

    def _refused(self) -> Frame:
        assert self._refusal
        return Frame({**self._call, **_refusal_fields(self._refusal)})


def _refusal_fields(refusal: Refused) -> dict[str, str]:
    return {"k": "refuse", "reason": str(refusal.reason), "detail": refusal.detail}
