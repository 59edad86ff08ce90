"""One kind of call between a silo and the server: what it may carry each way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from torch import Tensor

from manyhands.errors import Reason, Refused
from manyhands.formatting import size_text
from manyhands.messages.facts import Facts, Flag, Number, Text, Whole, check_facts, header_bytes
from manyhands.messages.message import MAX_MESSAGE_BYTES, Bounds, Message, index_bytes
from manyhands.messages.outgoing import OutgoingData
from manyhands.tensors import StateSpec, TensorSpec, find_not_finite, state_spec

IMAGES = Whole(1, 1 << 40)
"""How many images a silo has."""
COUNT, SEED = Whole(0, (1 << 53) - 1), Whole(0, (1 << 63) - 1)
FLOPS = Whole(0, 10**21)
MAX_LOSS = 1e12
"""No loss is larger, or training has gone wrong."""
WORD = Text(64)


def round_facts(rounds: int) -> Facts:
    """What a silo tells when it closes one of so many rounds.

    Its mean loss, the images it saw, the floating-point operations that this took, and why it sends nothing if it does
    not. The hub holds ``round`` against the open round and ``images`` against the enrolment, wherever they are told.
    """
    loss = Number(-MAX_LOSS, MAX_LOSS, or_none=True)
    return {"round": Whole(0, rounds - 1), "images": IMAGES, "loss": loss, "seen": COUNT, "flops": FLOPS,
            "withheld": Text()}  # fmt: skip


def next_round_facts(rounds: int) -> Facts:
    """What a silo is told when it joins, and after each of so many rounds."""
    return {"round": Whole(0, rounds), "done": Flag()}


RESTING = "resting"
"""Told as ``withheld`` by a silo that does not take part in the round."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Payload:
    """What one message of an operation may carry in one direction: ``tensors``, or one of the ``others`` instead.

    ``items`` is the most that a length may be which is open and has no limit of its own.
    """

    tensors: StateSpec = field(default_factory=lambda: _NOTHING)
    facts: Facts = field(default_factory=lambda: _NOTHING)
    others: tuple[StateSpec, ...] = ()
    items: int | None = None

    def check(self, message: Message) -> None:
        """Refuse what does not fit, with the reason."""
        check_facts(self.facts, message.facts)
        forms = (self.tensors, *self.others)
        refusals = [refusal for form in forms if (refusal := mismatch(form, message.tensors))]
        if len(refusals) == len(forms):
            raise next((each for each in refusals if each.reason is Reason.WRONG_SHAPE), refusals[0])
        if name_of_bad := find_not_finite(message.tensors):
            raise Refused(Reason.NOT_FINITE, f"{name_of_bad} holds a NaN or an infinity")

    @property
    def tensor_bytes(self) -> int:
        """The bytes of the tensors, in their largest form; of a form with an open length, those of one item."""
        forms = (self.tensors, *self.others)
        return max(sum(like.dtype.itemsize * like.size for like in form.values()) for form in forms)

    @cached_property
    def bounds(self) -> Bounds:
        """What such a message may take as encoded, in its largest form."""
        head, forms = header_bytes(self.facts), (self.tensors, *self.others)
        sizes = [Bounds.of(head, index_bytes(form), len(form), self._bytes(form)) for form in forms]
        return Bounds.largest(sizes)

    def _bytes(self, form: StateSpec) -> int:
        """The most bytes of the tensors of a form."""
        each = {name: like.dtype.itemsize * like.size for name, like in form.items()}
        count = {name: self.items or MAX_MESSAGE_BYTES for name, like in form.items() if like.is_unbounded}
        return sum(size * count.get(name, 1) for name, size in each.items())

    @property
    def size(self) -> str:
        """The size of the tensors, for people."""
        return " or ".join(dict.fromkeys(map(tensors_size, (self.tensors, *self.others))))


@dataclass(frozen=True)
class Operation:
    """One kind of call: who may say what, how often, in words and in types.

    One that ``draws`` is for when a run has ended, or between its rounds in one process: a server does nothing else
    meanwhile.
    """

    description: str
    often: str
    up: Payload = field(default_factory=Payload)
    down: Payload = field(default_factory=Payload)
    barrier: bool = False
    closes_round: bool = False
    outgoing: tuple[OutgoingData, ...] = ()
    """The kinds of things that it carries up, beside its facts."""
    draws: bool = False


def tensors_size(state_spec: StateSpec) -> str:
    """The size of the tensors of a layout, for people."""
    if not state_spec:
        return "no tensors"
    size = size_text(sum(like.dtype.itemsize * like.size for like in state_spec.values()))
    if any(None in like.shape and like.max_size is None for like in state_spec.values()):
        return f"{size} for each item"
    return f"at most {size}" if any(None in like.shape for like in state_spec.values()) else size


def mismatch(expected: StateSpec, tensors: Mapping[str, Tensor]) -> Refused | None:
    """Why tensors are not of a layout, or None where they are."""
    if missing := expected.keys() - tensors.keys():
        return Refused(Reason.MISSING_TENSOR, f"{min(missing)} is not there")
    if unexpected := tensors.keys() - expected.keys():
        return Refused(Reason.UNEXPECTED_TENSOR, f"{min(unexpected)} is not in the plan")
    found = state_spec(tensors)
    return next((bad for name, like in expected.items() if (bad := _mismatch_of(name, like, found[name]))), None)


def _mismatch_of(name: str, like: TensorSpec, found: TensorSpec) -> Refused | None:
    if found.dtype != like.dtype:
        return Refused(Reason.WRONG_DTYPE, f"{name} is {found.dtype}, not {like.dtype}")
    if len(found.shape) != len(like.shape) or any(
        n not in (None, got) for n, got in zip(like.shape, found.shape, strict=True)
    ):
        return Refused(Reason.WRONG_SHAPE, f"{name} is {found.shape}, not {like.shape}")
    if like.max_size is not None and found.size > like.size:
        return Refused(Reason.WRONG_SHAPE, f"{name} has {found.size} numbers, {like.size} are the most")
    return None
