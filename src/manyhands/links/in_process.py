"""All silos and the server in one process and one thread: a deterministic round robin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from manyhands.errors import ManyhandsError, MessageError, Reason, Refused
from manyhands.messages.message import Message, decode, encode, encoded_size
from manyhands.spec import Spec

if TYPE_CHECKING:
    from manyhands.links.coordinator import ClosedRound, RoundCoordinator
    from manyhands.messages.ledger import Direction, Ledger
    from manyhands.methods.base import Conversation, ServerCall


class InProcess(Spec):
    """The link without a network. It counts what encoding would give; ``wire = "bytes"`` really encodes."""

    kind: Literal["embedded"] = "embedded"
    wire: Literal["count", "bytes"] = "count"

    def run(
        self, coordinator: RoundCoordinator, silos: Mapping[str, Conversation], ledger: Ledger
    ) -> Iterator[ClosedRound]:
        """Advance the silos in the order of their names, and give back each round when it closes."""
        calls = {name: _SiloConversation(name, silos[name]) for name in sorted(silos)}
        while calls:
            moved = False
            for name, call in list(calls.items()):
                moved |= self._advance(coordinator, call, ledger)
                if call.ended:
                    del calls[name]
                while coordinator.closed:
                    yield coordinator.closed.pop(0)
                coordinator.train_step()
            if calls and not moved:
                raise ManyhandsError(f"{', '.join(calls)} wait at a barrier that nobody can complete")

    def server_call(self, coordinator: RoundCoordinator, silo: str, ledger: Ledger) -> ServerCall:
        """How a silo reaches the server outside a run: one message, one answer."""

        def ask(message: Message) -> Message:
            coordinator.submit(silo, self._carry(silo, "up", message, ledger))
            reply = self._answer(coordinator, silo, ledger)
            if not isinstance(reply, Message):
                raise ManyhandsError(f"{message.op} is answered to all silos together")
            return reply

        return ask

    def _advance(self, coordinator: RoundCoordinator, call: _SiloConversation, ledger: Ledger) -> bool:
        """Let one silo talk until it waits at a barrier or ends, if it can; it passes one barrier a turn at most."""
        answer = self._heard(coordinator, call.silo, ledger) if call.started else None
        if call.started and answer is None:
            return False
        while (message := call.go_on(answer)) is not None:
            try:
                coordinator.submit(call.silo, self._carry(call.silo, "up", message, ledger))
            except MessageError as error:
                answer = coordinator.refuse(call.silo, Refused(Reason.MALFORMED, str(error)))
                continue
            except Refused as refusal:
                answer = refusal
                continue
            if message.op in coordinator.plan.barriers:
                return True
            answer = self._heard(coordinator, call.silo, ledger)
        if call.lost:
            coordinator.drop(call.silo, call.lost)
        else:
            coordinator.finish(call.silo)
        return True

    def _heard(self, coordinator: RoundCoordinator, silo: str, ledger: Ledger) -> Message | Refused | None:
        """The answer as the silo takes it: one that is not in the plan is refused."""
        try:
            return self._answer(coordinator, silo, ledger)
        except Refused as refusal:
            return refusal

    def _answer(self, coordinator: RoundCoordinator, silo: str, ledger: Ledger) -> Message | None:
        reply = coordinator.collect(silo)
        if reply is None:
            return None
        reply = self._carry(silo, "down", reply, ledger)
        coordinator.plan.check(reply, "down")  # as a silo checks what it gets
        return reply

    def _carry(self, silo: str, direction: Direction, message: Message, ledger: Ledger) -> Message:
        if self.wire == "count":
            ledger.add(silo, direction, message.op, encoded_size(message))
            return Message(message.op, {name: t.detach() for name, t in message.tensors.items()}, message.facts)
        blob = encode(message)
        ledger.add(silo, direction, message.op, len(blob))
        return decode(blob)


class _SiloConversation:
    """A silo's conversation, and where it stands."""

    def __init__(self, silo: str, conversation: Conversation) -> None:
        self.silo = silo
        self.started = False
        self.ended = False
        self.lost = ""
        self._conversation = conversation

    def go_on(self, answer: Message | Refused | None) -> Message | None:
        """Give the silo its answer and take its next message; None when it has ended."""
        self.started = True
        try:
            if isinstance(answer, Refused):
                return self._conversation.throw(answer)
            return self._conversation.send(answer)  # type: ignore[arg-type] # None starts a generator
        except StopIteration:
            self.ended = True
        except Refused as refusal:
            self.ended, self.lost = True, f"refused: {refusal}"
        return None
