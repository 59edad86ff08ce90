"""A site's half of a method, held over its connection to the server, message by message."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from manyhands.errors import Reason, Refused

if TYPE_CHECKING:
    from manyhands.messages.message import Message
    from manyhands.messages.plan import Plan
    from manyhands.methods.base import Conversation


def converse(
    conversation: Conversation,
    plan: Plan,
    call: Callable[[Message], Message],
    keep: Callable[[int], None],
    charge: Callable[[Message, bool], None],
) -> None:
    """Hold a conversation until the silo has finished; nothing is sent or accepted that is not in the plan.

    A round that was closed is never repeated here, whatever weights the server sends for it.

    Args:
        conversation: The silo's half of the method.
        plan: The plan of the method.
        call: Sends a message and returns the answer; raises ``Refused`` if the server refuses it.
        keep: Writes what the silo has to disk. It is called before a message that closes a round is sent, with the
            number of rounds that are then closed, so that the silo can continue from there.
        charge: Charges a message to the site's budgets. It is called before the message is sent, with whether the
            message closes a round.
    """
    answer: Message | Refused | None = None
    closed_rounds = 0
    try:
        while True:
            message = _next_message(conversation, answer)
            plan.check(message, "up")
            if closes_round := plan.operations[message.op].closes_round:
                if message.facts["round"] < closed_rounds:
                    raise Refused(
                        Reason.STALE_ROUND, f"{closed_rounds} rounds are closed, but the server asks for one again"
                    )
                keep(message.facts["round"] + 1)
            charge(message, closes_round)
            try:
                answer = call(message)
                check_answer(message.op, answer, plan)
                closed_rounds = message.facts["round"] + 1 if closes_round else closed_rounds
            except Refused as refusal:
                answer = refusal
    except StopIteration:
        return
    finally:
        conversation.close()


def check_answer(op: str, answer: Message, plan: Plan) -> None:
    """Refuse a message that is not in the plan, or that answers another operation."""
    plan.check(answer, "down")
    if answer.op != op:
        raise Refused(Reason.UNKNOWN_OPERATION, f"{answer.op!r} is not an answer to {op!r}")


def _next_message(conversation: Conversation, answer: Message | Refused | None) -> Message:
    if isinstance(answer, Refused):
        return conversation.throw(answer)
    return conversation.send(answer)  # type: ignore[arg-type] # None starts a generator
