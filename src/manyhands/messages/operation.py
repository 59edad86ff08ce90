"""An operation, which is one kind of call from a silo to the server, and what its messages may contain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
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
"""The number of images of a silo."""
COUNT = Whole(0, (1 << 53) - 1)
"""A count, exact as a float in any JSON."""
SEED = Whole(0, (1 << 63) - 1)
"""A seed."""
FLOPS = Whole(0, 10**21)
"""A number of floating-point operations."""
MAX_LOSS = 1e12
"""The largest loss that is accepted; a larger one means that training has diverged."""
WORD = Text(64)


def round_facts(rounds: int) -> Facts:
    """Return the facts that a silo reports at the end of each of ``rounds`` rounds.

    These are its mean loss, the images it saw, the floating-point operations of its training, and the reason if it
    withholds its tensors. The coordinator compares ``round`` with the open round and ``images`` with the enrolment in
    every message that has them.
    """
    loss = Number(-MAX_LOSS, MAX_LOSS, or_none=True)
    return {"round": Whole(0, rounds - 1), "images": IMAGES, "loss": loss, "seen": COUNT, "flops": FLOPS,
            "withheld": Text()}  # fmt: skip


def next_round_facts(rounds: int) -> Facts:
    """Return the facts of the answer when a silo joins, and after each of ``rounds`` rounds."""
    return {"round": Whole(0, rounds), "done": Flag()}


RESTING = "resting"
"""The value of ``withheld`` from a silo that does not take part in the round."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Payload:
    """What a message of an operation may contain in one direction.

    Args:
        tensors: Its tensors.
        facts: Its facts.
        others: Alternatives to ``tensors``.
        items: The largest value of an open length without a limit of its own; ``None`` for the message's limit.
    """

    tensors: StateSpec = field(default_factory=lambda: _NOTHING)
    facts: Facts = field(default_factory=lambda: _NOTHING)
    others: tuple[StateSpec, ...] = ()
    items: int | None = None

    def check(self, message: Message) -> None:
        """Refuse a message with other content, and say why."""
        check_facts(self.facts, message.facts)
        specs = (self.tensors, *self.others)
        refusals = [refusal for spec in specs if (refusal := mismatch(spec, message.tensors))]
        if len(refusals) == len(specs):
            raise next((refusal for refusal in refusals if refusal.reason is Reason.WRONG_SHAPE), refusals[0])
        if name := find_not_finite(message.tensors):
            raise Refused(Reason.NOT_FINITE, f"{name} contains a NaN or an infinity")

    @property
    def has_tensors(self) -> bool:
        """Whether such a message may contain tensors."""
        return any((self.tensors, *self.others))

    @property
    def tensor_bytes(self) -> int:
        """The bytes of the tensors in the largest alternative; with an open length, those of one item."""
        specs = (self.tensors, *self.others)
        return max(sum(tensor.dtype.itemsize * tensor.size for tensor in spec.values()) for spec in specs)

    @cached_property
    def bounds(self) -> Bounds:
        """The largest encoded size of such a message."""
        header, specs = header_bytes(self.facts), (self.tensors, *self.others)
        return Bounds.largest(Bounds.of(header, index_bytes(spec), len(spec), self._bytes(spec)) for spec in specs)

    def _bytes(self, spec: StateSpec) -> int:
        """The most bytes of these tensors."""
        sizes = {name: tensor.dtype.itemsize * tensor.size for name, tensor in spec.items()}
        counts = {name: self.items or MAX_MESSAGE_BYTES for name, tensor in spec.items() if tensor.is_unbounded}
        return sum(size * counts.get(name, 1) for name, size in sizes.items())

    @property
    def size(self) -> str:
        """The size of the tensors in words."""
        return " or ".join(dict.fromkeys(map(tensors_size, (self.tensors, *self.others))))


@dataclass(frozen=True)
class Operation:
    """One kind of call from a silo to the server.

    Args:
        description: What the silo does with it, in words: "sends its update".
        often: How often, in words.
        up: What its message to the server may contain.
        down: What the answer may contain.
        barrier: Whether the server answers all silos together, when the last of them has called.
        closes_round: Whether the answer ends a round; then it is a barrier, and ``up`` has the fact ``round``.
        outgoing: What leaves the silo with it, besides its facts; a plan needs it where ``up`` has tensors.
        draws: Whether it generates images: the server answers it only between rounds or after the last one.
    """

    description: str
    often: str
    up: Payload = field(default_factory=Payload)
    down: Payload = field(default_factory=Payload)
    _: KW_ONLY
    barrier: bool = False
    closes_round: bool = False
    outgoing: tuple[OutgoingData, ...] = ()
    draws: bool = False


def tensors_size(spec: StateSpec) -> str:
    """Describe the size of tensors in words."""
    if not spec:
        return "no tensors"
    size = size_text(sum(tensor.dtype.itemsize * tensor.size for tensor in spec.values()))
    if any(tensor.is_unbounded for tensor in spec.values()):
        return f"{size} for each item"
    return f"at most {size}" if any(None in tensor.shape for tensor in spec.values()) else size


def mismatch(expected: StateSpec, tensors: Mapping[str, Tensor]) -> Refused | None:
    """Return the refusal of tensors that differ from those expected, or None."""
    if missing := expected.keys() - tensors.keys():
        return Refused(Reason.MISSING_TENSOR, f"{min(missing)} is missing")
    if unexpected := tensors.keys() - expected.keys():
        return Refused(Reason.UNEXPECTED_TENSOR, f"{min(unexpected)} is not in the plan")
    specs = state_spec(tensors)
    return next((bad for name, spec in expected.items() if (bad := _mismatch_of(name, spec, specs[name]))), None)


def _mismatch_of(name: str, expected: TensorSpec, actual: TensorSpec) -> Refused | None:
    if actual.dtype != expected.dtype:
        return Refused(Reason.WRONG_DTYPE, f"{name} is {actual.dtype}, not {expected.dtype}")
    if len(actual.shape) != len(expected.shape) or any(
        n not in (None, length) for n, length in zip(expected.shape, actual.shape, strict=True)
    ):
        return Refused(Reason.WRONG_SHAPE, f"{name} is {actual.shape}, not {expected.shape}")
    if expected.max_size is not None and actual.size > expected.size:
        return Refused(Reason.WRONG_SHAPE, f"{name} has {actual.size} numbers; at most {expected.size} are allowed")
    return None
