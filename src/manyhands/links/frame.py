"""The door of a line: what it carries becomes a flat frame of known fields here, or one that says that it was none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

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
"""What a frame may be, and the fields that it has then."""
FRAME_FIELDS = {kind: {name: FIELDS[name] for name in names.split()} for kind, names in KINDS.items()}
INVALID = "odd"
"""The kind of what is no frame: it has the session and the number of its call, where those could be read, and why."""


class Frame(NamedTuple):
    """What a line carries: a few plain words, and bytes."""

    fields: dict[str, Any]
    payload: bytes = b""


def read_frame(told: Any, payload: Any) -> Frame:
    """What came as a frame. It raises nothing, whatever came."""
    try:
        return _read(told, payload)
    except Exception as error:  # it is foreign: nobody knows what it may come to
        why = printable(error.detail) if isinstance(error, Refused) else type(error).__name__
        return Frame({**_whose(told), "k": INVALID, "why": why})


def _read(told: Any, payload: Any) -> Frame:
    kind = told.get("k") if type(told) is dict else None
    if type(kind) is not str or kind not in FRAME_FIELDS:
        raise Refused(Reason.MALFORMED, "there is no such frame")
    check_facts(FRAME_FIELDS[kind], told)
    raw = bytes(payload or b"")
    if raw and kind != "part":
        raise Refused(Reason.MALFORMED, f"a frame of kind {kind!r} carries {len(raw):,} bytes")
    if not all(value.isprintable() for value in told.values() if type(value) is str):
        raise Refused(Reason.MALFORMED, "a word of it cannot be printed")
    return Frame(told, raw)


def _whose(told: Any) -> dict[str, Any]:
    """The call that it is of, as far as that can be read."""
    if type(told) is not dict:
        return {}
    found = {name: told[name] for name in ("s", "n") if name in told and FIELDS[name].accepts(told[name])}
    return found if str(found.get("s", "")).isprintable() else {}
