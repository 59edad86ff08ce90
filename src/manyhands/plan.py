"""Every operation of a method and what it may carry, each way: for the hub, for the silo and for a person."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor

from manyhands.errors import Reason, Refused
from manyhands.ledger import Direction
from manyhands.message import Message
from manyhands.tensors import Layout, Like, finite, layout

ROUND_FACTS = {"round": int, "images": int, "loss": float | None, "seen": int, "flops": int, "withheld": str}
"""What a silo tells when it closes a round: its mean loss, the images it saw, the floating-point operations that this
took, and why it sends nothing if it does not.

The hub holds ``round`` against the open round and ``images`` against the enrolment, wherever they are told.
"""
RESTING = "resting"
"""Told as ``withheld`` by a silo that does not take part in the round."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Carries:
    """What one message of an operation may carry in one direction: ``tensors``, or one of the ``others`` instead."""

    tensors: Layout = field(default_factory=lambda: _NOTHING)
    facts: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    others: tuple[Layout, ...] = ()

    def check(self, message: Message) -> None:
        """Refuse what does not fit, with the reason."""
        _check_facts(self.facts, message.facts)
        forms = (self.tensors, *self.others)
        refusals = [refusal for form in forms if (refusal := misfit(form, message.tensors))]
        if len(refusals) == len(forms):
            raise next((each for each in refusals if each.reason is Reason.WRONG_SHAPE), refusals[0])
        if name_of_bad := finite(message.tensors):
            raise Refused(Reason.NOT_FINITE, f"{name_of_bad} holds a NaN or an infinity")

    @property
    def weight(self) -> int:
        """The bytes of the tensors, in their largest form; of a form with an open length, those of one item."""
        forms = (self.tensors, *self.others)
        return max(sum(like.dtype.itemsize * like.size for like in form.values()) for form in forms)

    @property
    def size(self) -> str:
        """The size of the tensors, for people."""
        return " or ".join(dict.fromkeys(map(tensors_size, (self.tensors, *self.others))))


@dataclass(frozen=True)
class Operation:
    """One kind of call: who may say what, how often, in words and in types."""

    says: str
    often: str
    up: Carries = field(default_factory=Carries)
    down: Carries = field(default_factory=Carries)
    group: bool = False
    closes_round: bool = False


@dataclass(frozen=True)
class Plan:
    """The whole of what may pass between a silo and the server."""

    operations: Mapping[str, Operation]
    never: tuple[str, ...] = ("images", "file names")

    @property
    def groups(self) -> frozenset[str]:
        """The operations that are answered when everyone awaited has called."""
        return frozenset(name for name, operation in self.operations.items() if operation.group)

    def check(self, message: Message, direction: Direction) -> None:
        """Refuse a message that is not in the plan."""
        operation = self.operations.get(message.op)
        if operation is None:
            raise Refused(Reason.UNKNOWN_OPERATION, f"{message.op!r} is not one of {sorted(self.operations)}")
        (operation.up if direction == "up" else operation.down).check(message)

    def words(self) -> list[str]:
        """The plan as a person reads it before approving a run."""
        lines = []
        for name, operation in self.operations.items():
            sends, tells = operation.up.size, ", ".join(operation.up.facts) or "nothing else"
            gets = operation.down.size
            lines.append(
                f"{name} ({operation.often}): {operation.says}; sends {sends} and tells {tells}; receives {gets}"
            )
        return [*lines, f"never sent: {', '.join(self.never)}"]


def tensors_size(layout: Layout) -> str:
    """The size of the tensors of a layout, for people."""
    if not layout:
        return "no tensors"
    size = size_text(sum(like.dtype.itemsize * like.size for like in layout.values()))
    if any(None in like.shape and like.most is None for like in layout.values()):
        return f"{size} for each item"
    return f"at most {size}" if any(None in like.shape for like in layout.values()) else size


def size_text(count: float) -> str:
    """Bytes for people: 12 B, 3.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count_text(count: float) -> str:
    """A large count for people: 12, 3.4 M."""
    for unit in ("", " k", " M", " G", " T"):
        if count < 1000:
            return f"{count:.0f}" if not unit else f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} P"


def _check_facts(expected: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    if set(facts) != set(expected):
        raise Refused(Reason.WRONG_FACTS, f"has facts {sorted(facts)}, not {sorted(expected)}")
    for name, kind in expected.items():
        value = facts[name]
        if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind):
            raise Refused(Reason.WRONG_FACTS, f"{name} is {value!r}, not of type {getattr(kind, '__name__', kind)}")
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise Refused(Reason.WRONG_FACTS, f"{name} is beyond 64 bits")
        if isinstance(value, float) and not math.isfinite(value):
            raise Refused(Reason.NOT_FINITE, f"{name} is {value!r}")


def misfit(expected: Layout, tensors: Mapping[str, Tensor]) -> Refused | None:
    """Why tensors are not of a layout, or None where they are."""
    if missing := expected.keys() - tensors.keys():
        return Refused(Reason.MISSING_TENSOR, f"{min(missing)} is not there")
    if unexpected := tensors.keys() - expected.keys():
        return Refused(Reason.UNEXPECTED_TENSOR, f"{min(unexpected)} is not in the plan")
    found = layout(tensors)
    return next((bad for name, like in expected.items() if (bad := _misfit_of(name, like, found[name]))), None)


def _misfit_of(name: str, like: Like, found: Like) -> Refused | None:
    if found.dtype != like.dtype:
        return Refused(Reason.WRONG_DTYPE, f"{name} is {found.dtype}, not {like.dtype}")
    if len(found.shape) != len(like.shape) or any(
        n not in (None, got) for n, got in zip(like.shape, found.shape, strict=True)
    ):
        return Refused(Reason.WRONG_SHAPE, f"{name} is {found.shape}, not {like.shape}")
    if like.most is not None and found.size > like.size:
        return Refused(Reason.WRONG_SHAPE, f"{name} has {found.size} numbers, {like.size} are the most")
    return None
