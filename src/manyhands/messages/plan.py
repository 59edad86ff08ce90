"""Every operation of a method and what it may carry, each way: for the coordinator, for the silo and for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from manyhands.errors import Reason, Refused
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
    """The whole of what may pass between a silo and the server."""

    operations: Mapping[str, Operation]
    before: tuple[OutgoingData, ...] = ()
    """What has left the silos before the run."""

    @property
    def outgoing(self) -> tuple[OutgoingData, ...]:
        """Every kind of thing that leaves a silo, each once: what gives most away first."""
        return collect_outgoing(self.operations.values(), self.before)

    def outgoing_of(self, silo: str) -> tuple[OutgoingData, ...]:
        """The kinds of things that leave this silo."""
        return for_silo(self.outgoing, silo)

    @property
    def never_sent(self) -> tuple[str, ...]:
        """What no message has a place for; that says nothing of what can be computed from the rest."""
        return never_sent(self.outgoing)

    @property
    def barriers(self) -> frozenset[str]:
        """The operations that are answered when everyone awaited has called."""
        return frozenset(name for name, operation in self.operations.items() if operation.barrier)

    def check(self, message: Message, direction: Direction) -> None:
        """Refuse a message that is not in the plan."""
        operation = self.operations.get(message.op)
        if operation is None:
            raise Refused(Reason.UNKNOWN_OPERATION, f"{message.op!r} is not one of {sorted(self.operations)}")
        (operation.up if direction == "up" else operation.down).check(message)

    def bounds(self, direction: Direction) -> Bounds:
        """What the largest message may take that goes this way."""
        carried = ((each.up if direction == "up" else each.down) for each in self.operations.values())
        return Bounds.largest(each.bounds for each in carried)

    def words(self, silo: str = "", images: int | None = None) -> list[str]:
        """The plan as a person reads it before approving a run, for all or for a silo with so many images."""
        kinds = self.outgoing_of(silo) if silo else self.outgoing
        lines = [*given_away(kinds, images), *describe(kinds, images)]
        for name, operation in self.operations.items():
            sends, tells = operation.up.size, ", ".join(operation.up.facts) or "nothing else"
            gets = operation.down.size
            lines.append(
                f"{name} ({operation.often}): {operation.description}; sends {sends} and tells {tells}; receives {gets}"
            )
        return [*lines, f"in no message: {', '.join(never_sent(kinds))}; {NO_REASSURANCE}"]
