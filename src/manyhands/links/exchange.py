"""Calls over a network that loses, repeats and reorders: each is applied once and answered, however often it is cut.

A call and its answer travel in parts. Whoever receives says how many it has, and whoever sends is never more than a
window ahead of that. Only the caller asks again; a server never does. Neither end has a clock, a thread or a socket
here: a line brings its own.
"""

from __future__ import annotations

import tempfile
import weakref
from bisect import bisect_right
from itertools import accumulate
from typing import Any

from manyhands.errors import ManyhandsError, MessageError, Reason, Refused
from manyhands.links.frame import Frame
from manyhands.messages.message import UNBOUNDED, Bounds, Message, decode, decode_from, head_size, pieces

PART_BYTES = 1 << 20
"""Bytes of a part; the last one of a message may have fewer."""
WINDOW_PARTS = 2
"""Parts that may be under way."""
MAX_WAITING_FRAMES = 4 * WINDOW_PARTS
"""Frames of a peer that wait to be looked at, at most: more are lost, as a network may lose them."""
MAX_MEMORY_BYTES = 16 * PART_BYTES
"""Larger messages wait in a file."""
MAX_RETIRED_SESSIONS = 64
"""So many sessions that have ended are remembered of a caller."""


class SessionGone(ManyhandsError):  # noqa: N818 - the name of the event
    """The other end knows nothing of this session: it was begun anew, or the caller begins another one."""


class SendBuffer:
    """A message in parts; its tensors are read when a part is asked for, so they must not change meanwhile."""

    def __init__(self, message: Message) -> None:
        self._pieces = list(pieces(message))
        self._ends = list(accumulate(map(len, self._pieces)))
        self.size = self._ends[-1]
        self.count = -(-self.size // PART_BYTES)
        self.sent = 0

    def up_to(self, have: int, told: dict[str, Any]) -> list[Frame]:
        """The parts not yet sent that the window allows for one who has so many."""
        end = min(min(have, self.sent) + WINDOW_PARTS, self.count)
        numbers, self.sent = range(self.sent, end), max(self.sent, end)
        return [Frame({**told, "k": "part", "i": i, "size": self.size}, self._part(i)) for i in numbers]

    def _part(self, number: int) -> bytes:
        at, end = number * PART_BYTES, min((number + 1) * PART_BYTES, self.size)
        found, which = [], bisect_right(self._ends, at)
        while at < end:
            begin = self._ends[which] - len(self._pieces[which])
            taken = self._pieces[which][at - begin : end - begin]
            found.append(taken)
            at, which = at + len(taken), which + 1
        return b"".join(found)


class Spool:
    """A file without a name, gone when nobody holds it any more, however that comes about."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self.file.close)

    def fileno(self) -> int:
        """Its descriptor."""
        return self.file.fileno()


class ReceiveBuffer:
    """The parts of a message, in whatever order they come; a large one waits in a file.

    Nothing is kept or parsed of one that says that it takes more than it may.
    """

    def __init__(self, size: int, bounds: Bounds) -> None:
        if not 0 < size <= bounds.size:
            raise Refused(Reason.MALFORMED, f"a message of {size:,} bytes was announced, {bounds.size:,} are the most")
        self.size, self.bounds, self.count, self.have = size, bounds, -(-size // PART_BYTES), 0
        self._early: dict[int, bytes] = {}
        self._parts: list[bytes] = []
        self._spool = Spool() if size > MAX_MEMORY_BYTES else None

    def take(self, number: int, payload: bytes) -> None:
        """Take a part, unless it is here already or too far ahead."""
        if not 0 <= number < self.count:
            raise Refused(Reason.MALFORMED, f"part {number} was sent of {self.count}")
        if not self.have <= number < min(self.have + 2 * WINDOW_PARTS, self.count):
            return
        if len(payload) != min(PART_BYTES, self.size - number * PART_BYTES):
            raise Refused(Reason.MALFORMED, f"part {number} has {len(payload):,} bytes")
        if not number:
            self.bounds.check_begin(payload)
        self._early[number] = payload
        while (following := self._early.pop(self.have, None)) is not None:
            self._keep(following)
            self.have += 1

    @property
    def whole(self) -> bool:
        """Whether all of it is there."""
        return self.have == self.count

    @property
    def due(self) -> bool:
        """Whether the sender is told of it: twice a window, which is before it has to wait."""
        return not self.whole and self.have % (WINDOW_PARTS // 2) == 0

    def message(self) -> Message:
        """The message, when it is whole."""
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
    """The caller's end of one call."""

    def __init__(self, message: Message, session: str, number: int, bounds: Bounds = UNBOUNDED) -> None:
        self._told = {"s": session, "n": number}
        self._bounds = bounds
        self._out = SendBuffer(message)
        self._in: ReceiveBuffer | None = None
        self.answer: Message | None = None

    def begin(self) -> list[Frame]:
        """What to send first."""
        return self._out.up_to(0, self._told)

    def again(self) -> list[Frame]:
        """What to send after a silence."""
        return [Frame({**self._told, "k": "ask", "i": self._in.have if self._in else 0})]

    def take(self, frame: Frame) -> list[Frame]:
        """What to send after a frame; a refusal is raised, and one of an answer that is none."""
        try:
            return self._take(frame)
        except MessageError as error:
            raise Refused(Reason.MALFORMED, f"what was answered is no message: {error}") from None
        except OSError as error:
            raise Refused(Reason.NOT_NOW, f"there is no room for what was answered: {error.strerror}") from None

    def _take(self, frame: Frame) -> list[Frame]:
        told = frame.fields
        if self.answer is not None or any(told.get(name) != value for name, value in self._told.items()):
            return []
        match told:
            case {"k": "gone"}:
                raise SessionGone("the server has begun anew, or another process has this silo's name")
            case {"k": "refuse", "reason": str(reason), "detail": str(detail)} if reason in set(Reason):
                raise Refused(Reason(reason), detail)
            case {"k": "have", "i": int(have)}:
                return self._out.up_to(have, self._told)
            case {"k": "want", "i": int(have)}:
                self._out.sent = min(self._out.sent, max(have, 0))
                return self._out.up_to(have, self._told)
            case {"k": "part", "i": int(number), "size": int(size)}:
                self._in = self._in or ReceiveBuffer(size, self._bounds)
                self._in.take(number, frame.payload)
                if self._in.whole:
                    self.answer = self._in.message()
                return [Frame({**self._told, "k": "have", "i": self._in.have})] if self._in.due else []
        return []


class ServerSession:
    """The server's end of the calls of one caller, who has one at a time, within the ``bounds`` of what it may say."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.session, self.number = "", 0
        self._in: ReceiveBuffer | None = None
        self._whole = False
        self._out: SendBuffer | None = None
        self._refusal: Refused | None = None
        self._retired: list[str] = []

    def take(self, frame: Frame) -> tuple[list[Frame], Message | None]:
        """What to send after a frame, and the call where it is whole now."""
        match frame.fields:
            case {"k": "part", "s": str(session), "n": int(number), "i": int(i), "size": int(size)}:
                return self._part(session, number, i, size, frame.payload)
            case {"k": "ask", "s": str(session), "n": int(number), "i": int(have)}:
                return self._asked(session, number, have), None
            case {"k": "have", "s": self.session, "n": self.number, "i": int(have)} if self._out:
                return self._out.up_to(have, self._told), None
            case {"k": "have", "s": str(), "n": int(), "i": int()}:
                return [], None
        if not {"s", "n"} <= frame.fields.keys():
            return [], None
        whose = {name: frame.fields[name] for name in ("s", "n")}
        why = frame.fields.get("why", "there is no such frame")
        return [Frame({**whose, **_words(Refused(Reason.MALFORMED, why))})], None

    def answer(self, message: Message | Refused) -> list[Frame]:
        """Answer the call."""
        if isinstance(message, Refused):
            self._refusal, self._in = message, None
            return [self._refused()]
        self._out = SendBuffer(message)
        return self._out.up_to(0, self._told)

    def forget(self) -> list[Frame]:
        """End the session: whoever has it must begin another one, and is told so."""
        told = self._told
        self._retire()
        return [Frame({"k": "gone", **told})] if told["s"] else []

    @property
    def _told(self) -> dict[str, Any]:
        return {"s": self.session, "n": self.number}

    def _part(self, session: str, number: int, i: int, size: int, payload: bytes) -> tuple[list[Frame], Message | None]:
        if (session, number) != (self.session, self.number):
            if not self._begins(session, number):
                return [Frame({"k": "gone", "s": session, "n": number})], None
            if session != self.session:
                self._retire()
            self._clear()
            self.session, self.number = session, number
        if self._refusal or self._whole:
            return [], None
        try:
            self._in = self._in or ReceiveBuffer(size, self.bounds)
            self._in.take(i, payload)
            if not self._in.whole:
                return [Frame({**self._told, "k": "have", "i": self._in.have})] if self._in.due else [], None
            message, self._in, self._whole = self._in.message(), None, True
            return [], message
        except MessageError as error:
            return self.answer(Refused(Reason.MALFORMED, str(error))), None
        except OSError as error:
            return self.answer(Refused(Reason.NOT_NOW, f"there is no room for it: {error.strerror}")), None
        except Refused as refusal:
            return self.answer(refusal), None

    def _asked(self, session: str, number: int, have: int) -> list[Frame]:
        if (session, number) != (self.session, self.number):
            whose = {"s": session, "n": number}
            fresh = self._begins(session, number)
            return [Frame({**whose, "k": "want", "i": 0} if fresh else {**whose, "k": "gone"})]
        if self._refusal:
            return [self._refused()]
        if self._out:
            self._out.sent = min(self._out.sent, max(have, 0))
            return self._out.up_to(have, self._told)
        if self._whole:
            return [Frame({**self._told, "k": "wait"})]
        return [Frame({**self._told, "k": "want", "i": self._in.have if self._in else 0})]

    def _begins(self, session: str, number: int) -> bool:
        """Whether a call may follow the newest one: it is the session's next, or the first of another one."""
        return session not in self._retired and number == (self.number + 1 if session == self.session else 1)

    def _retire(self) -> None:
        if self.session:
            self._retired = [*self._retired, self.session][-MAX_RETIRED_SESSIONS:]
        self.session, self.number = "", 0
        self._clear()

    def _clear(self) -> None:
        self._in = self._out = self._refusal = None
        self._whole = False

    def _refused(self) -> Frame:
        assert self._refusal
        return Frame({**self._told, **_words(self._refusal)})


def _words(refusal: Refused) -> dict[str, str]:
    return {"k": "refuse", "reason": str(refusal.reason), "detail": refusal.detail}
