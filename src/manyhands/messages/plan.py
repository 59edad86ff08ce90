"""The plan of a method: all its operations. The coordinator and the silo enforce it, and people read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from manyhands.errors import Reason, RecipeError, Refused
from manyhands.messages.ledger import Direction
from manyhands.messages.message import Bounds, Message
from manyhands.messages.operation import Operation
from manyhands.messages.outgoing import OutgoingData
from manyhands.messages.outgoing.summary import (
    NO_REASSURANCE,
    collect_outgoing,
    describe,
    for_silo,
    given_away,
    never_sent,
)


@dataclass(frozen=True)
class Plan:
    """All that a silo and the server may send each other.

    Args:
        operations: The operations, by name.
        before: What has left the silos before the run.

    Raises:
        RecipeError: An operation sends tensors and does not say what kind of data they are, or it closes a round and is
            no barrier, or has no fact ``round``, which a site counts by.
    """

    operations: Mapping[str, Operation]
    before: tuple[OutgoingData, ...] = ()

    def __post_init__(self) -> None:
        for name, operation in self.operations.items():
            if problem := _problem_of(operation):
                raise RecipeError(f"plan: {name!r} {problem}")

    @property
    def outgoing(self) -> tuple[OutgoingData, ...]:
        """Everything that leaves a silo, without duplicates; what reveals most comes first."""
        return collect_outgoing(self.operations.values(), self.before)

    def outgoing_of(self, silo: str) -> tuple[OutgoingData, ...]:
        """Everything that leaves this silo."""
        return for_silo(self.outgoing, silo)

    @property
    def never_sent(self) -> tuple[str, ...]:
        """What no message can contain; it may still be possible to compute it from what is sent."""
        return never_sent(self.outgoing)

    @property
    def barriers(self) -> frozenset[str]:
        """The operations that the server answers when every silo has called."""
        return frozenset(name for name, operation in self.operations.items() if operation.barrier)

    def check(self, message: Message, direction: Direction) -> None:
        """Refuse a message that the plan does not allow in this direction."""
        operation = self.operations.get(message.op)
        if operation is None:
            raise Refused(Reason.UNKNOWN_OPERATION, f"{message.op!r} is not one of {sorted(self.operations)}")
        (operation.up if direction == "up" else operation.down).check(message)

    def bounds(self, direction: Direction) -> Bounds:
        """The size of the largest message in this direction."""
        operations = self.operations.values()
        payloads = (operation.up if direction == "up" else operation.down for operation in operations)
        return Bounds.largest(payload.bounds for payload in payloads)

    def words(self, silo: str = "", images: int | None = None) -> list[str]:
        """Describe the plan in words, as a person reads it before approving a run.

        Args:
            silo: The silo whose plan it is; "" for all silos.
            images: The number of images of the silo, if known.
        """
        kinds = self.outgoing_of(silo) if silo else self.outgoing
        lines = [*given_away(kinds, images), *describe(kinds, images)]
        for name, operation in self.operations.items():
            sent, facts = operation.up.size, ", ".join(operation.up.facts) or "none"
            received = operation.down.size
            lines.append(
                f"{name} ({operation.often}): {operation.description}; sends {sent} (fields in the message: {facts}); "
                f"receives {received}"
            )
        return [*lines, f"in no message: {', '.join(never_sent(kinds))}; {NO_REASSURANCE}"]


def _problem_of(operation: Operation) -> str:
    """What an operation lacks, as the end of a sentence that begins with its name; "" for nothing."""
    if operation.up.has_tensors and not operation.outgoing:
        return "sends tensors, but its `outgoing` is empty; it must name the kinds of data, since sites decide on them"
    if operation.closes_round and not (operation.barrier and "round" in operation.up.facts):
        return "closes a round, so it must be a barrier, and `up` must have the fact 'round', as in round_facts(rounds)"
    return ""
