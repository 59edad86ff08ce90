"""A frame, which is what a connection carries; whatever arrives is checked and becomes a frame of known fields.

Short names of fields: ``k`` is the kind of the frame, ``s`` the name of the session, ``n`` the number of the call in
the session, and ``i`` the number of a part of the message, or how many parts the receiver has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from manyhands.errors import MAX_DETAIL_LENGTH, Reason, Refused, printable
from manyhands.messages.facts import Fact, Text, Whole, check_facts
from manyhands.messages.message import MAX_MESSAGE_BYTES

CALL_NUMBER = Whole(0, 1 << 53)
FIELDS: Mapping[str, Fact] = {
    "k": Text(8), "s": Text(64), "n": CALL_NUMBER, "i": CALL_NUMBER, "size": Whole(1, MAX_MESSAGE_BYTES),
    "reason": Text(64), "detail": Text(MAX_DETAIL_LENGTH),
}  # fmt: skip
KINDS = {
    "part": "k s n i size", "ask": "k s n i", "have": "k s n i", "want": "k s n i", "wait": "k s n", "gone": "k s n",
    "refuse": "k s n reason detail",
}  # fmt: skip
"""The kinds of frames, and the fields of each."""
FRAME_FIELDS = {kind: {name: FIELDS[name] for name in names.split()} for kind, names in KINDS.items()}
INVALID = "odd"
"""The kind of an invalid frame: it has the session and the number of its call, if readable, and the reason."""


class Frame(NamedTuple):
    """What a connection carries.

    Args:
        fields: A few JSON values; "k" is the kind of the frame.
        payload: The bytes of a part of a message.
    """

    fields: dict[str, Any]
    payload: bytes = b""


class Connection(Protocol):
    """Carries frames between this party and its peers, whatever the network is."""

    def send(self, peer: str, frames: Sequence[Frame]) -> None:
        """Send frames; some may be lost."""


OnFrame = Callable[[str, Frame], None]
"""Called in another thread with the name of a peer and a frame from it."""
Connect = Callable[[OnFrame], Connection]
"""Opens a connection."""


def read_frame(fields: Any, payload: Any) -> Frame:
    """Check what a peer sent and return it as a frame; it never raises."""
    try:
        return _read(fields, payload)
    except Exception as error:  # a peer may send anything
        why = printable(error.detail) if isinstance(error, Refused) else type(error).__name__
        return Frame({**_call_of(fields), "k": INVALID, "why": why})


def _read(fields: Any, payload: Any) -> Frame:
    kind = fields.get("k") if type(fields) is dict else None
    if type(kind) is not str or kind not in FRAME_FIELDS:
        raise Refused(Reason.MALFORMED, "there is no such frame")
    check_facts(FRAME_FIELDS[kind], fields)
    raw = bytes(payload or b"")
    if raw and kind != "part":
        raise Refused(Reason.MALFORMED, f"a frame of kind {kind!r} carries {len(raw):,} bytes")
    if not all(value.isprintable() for value in fields.values() if type(value) is str):
        raise Refused(Reason.MALFORMED, "it has characters that cannot be printed")
    return Frame(fields, raw)


def _call_of(fields: Any) -> dict[str, Any]:
    """Return the session and the number of the call, as far as they can be read."""
    if type(fields) is not dict:
        return {}
    call = {name: fields[name] for name in ("s", "n") if name in fields and FIELDS[name].accepts(fields[name])}
    return call if str(call.get("s", "")).isprintable() else {}
