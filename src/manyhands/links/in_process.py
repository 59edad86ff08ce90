"""The link within one process: all silos and the server in one thread, in a deterministic round robin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from manyhands.errors import ManyhandsError, MessageError, Reason, Refused
from manyhands.messages.message import Message, decode, encode, encoded_size
from manyhands.spec import Spec

if TYPE_CHECKING:
    from manyhands.links.coordinator import ClosedRound, RoundCoordinator
    from manyhands.messages.ledger import Direction, Ledger
    from manyhands.methods.base import Conversation, ServerCall


class InProcess(Spec):
    """All silos and the server in one process, without a network."""

    kind: Literal["in_process"] = Field(default="in_process", description="The link: one process, no network.")
    wire: Literal["count", "bytes"] = Field(
        default="count",
        description='"count" computes the bytes of each message; "bytes" also encodes and decodes it.',
    )

    def run(
        self, coordinator: RoundCoordinator, silos: Mapping[str, Conversation], ledger: Ledger
    ) -> Iterator[ClosedRound]:
        """Advance the silos in the order of their names, and yield each round when it closes.

        Args:
            coordinator: The server's side.
            silos: The silos' halves of the method.
            ledger: The ledger that counts the bytes.
        """
        conversations = {name: _SiloConversation(name, silos[name]) for name in sorted(silos)}
        while conversations:
            moved = False
            for name, conversation in list(conversations.items()):
                moved |= self._advance(coordinator, conversation, ledger)
                if conversation.ended:
                    del conversations[name]
                while coordinator.closed:
                    yield coordinator.closed.pop(0)
                coordinator.train_step()
            if conversations and not moved:
                raise ManyhandsError(f"{', '.join(conversations)} wait at a barrier that cannot be completed")

    def server_call(self, coordinator: RoundCoordinator, silo: str, ledger: Ledger) -> ServerCall:
        """Return a function with which a silo calls the server outside a run: one message, one answer."""

        def call(message: Message) -> Message:
            coordinator.submit(silo, self._carry(silo, "up", message, ledger))
            reply = self._answer(coordinator, silo, ledger)
            if not isinstance(reply, Message):
                raise ManyhandsError(f"{message.op} is answered for all silos together, so one silo cannot call it")
            return reply

        return call

    def _advance(self, coordinator: RoundCoordinator, conversation: _SiloConversation, ledger: Ledger) -> bool:
        """Let one silo run until it waits at a barrier or ends; return whether it did anything."""
        answer = self._receive(coordinator, conversation.silo, ledger) if conversation.started else None
        if conversation.started and answer is None:
            return False
        while (message := conversation.resume(answer)) is not None:
            try:
                coordinator.submit(conversation.silo, self._carry(conversation.silo, "up", message, ledger))
            except MessageError as error:
                answer = coordinator.refuse(conversation.silo, Refused(Reason.MALFORMED, str(error)))
                continue
            except Refused as refusal:
                answer = refusal
                continue
            if message.op in coordinator.plan.barriers:
                return True
            answer = self._receive(coordinator, conversation.silo, ledger)
        if conversation.lost:
            coordinator.drop(conversation.silo, conversation.lost)
        else:
            coordinator.finish(conversation.silo)
        return True

    def _receive(self, coordinator: RoundCoordinator, silo: str, ledger: Ledger) -> Message | Refused | None:
        """Return the answer as the silo receives it: an answer that is not in the plan is refused."""
        try:
            return self._answer(coordinator, silo, ledger)
        except Refused as refusal:
            return refusal

    def _answer(self, coordinator: RoundCoordinator, silo: str, ledger: Ledger) -> Message | None:
        reply = coordinator.collect(silo)
        if reply is None:
            return None
        reply = self._carry(silo, "down", reply, ledger)
        coordinator.plan.check(reply, "down")  # a silo checks what it receives
        return reply

    def _carry(self, silo: str, direction: Direction, message: Message, ledger: Ledger) -> Message:
        if self.wire == "count":
            ledger.add(silo, direction, message.op, encoded_size(message))
            return Message(message.op, {name: t.detach() for name, t in message.tensors.items()}, message.facts)
        blob = encode(message)
        ledger.add(silo, direction, message.op, len(blob))
        return decode(blob)


class _SiloConversation:
    """A silo's half of the method, and its state."""

    def __init__(self, silo: str, conversation: Conversation) -> None:
        self.silo = silo
        self.started = False
        self.ended = False
        self.lost = ""
        self._conversation = conversation

    def resume(self, answer: Message | Refused | None) -> Message | None:
        """Give the silo its answer and return its next message; None if it has ended."""
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
