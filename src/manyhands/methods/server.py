"""The server's half of a method, and a server that wraps another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch

from manyhands.methods.update_length import LENGTHS, UpdateLengths
from manyhands.tensors import add_prefix

if TYPE_CHECKING:
    from manyhands.generators.load import TrainedModel
    from manyhands.messages.message import Message
    from manyhands.tensors import Tensors


class Accumulated(NamedTuple):
    """What ``Server.accumulate`` did with a message of a group operation.

    Attributes:
        message: What of it is kept until the barrier.
        taken: Whether the server has added it up, and so cannot do without it. A silo that restarts and sends it again
            is then answered without another ``accumulate``; where False, the newer message replaces the earlier one.
    """

    message: Message
    taken: bool = False


class Server(ABC):
    """The server's half of a method. It answers messages of silos, and may train between them.

    The smallest server has ``state_dict``, ``load_state_dict`` and whatever its plan needs: ``handle`` for operations
    that are answered at once, ``handle_barrier`` for group operations. It is driven in this order:

    1. ``validate`` is called for every message that fits the plan. It raises ``Refused`` for what must not be taken
       from this silo now, and changes nothing.
    2. An operation of one silo goes to ``handle``, which returns the answer.
    3. A message of a group operation goes to ``accumulate`` (in the order of the silos' names), and when all awaited
       silos have called, ``handle_barrier`` answers them together. In the operation that closes a round it adds 1 to
       ``round``.
    4. While nobody waits for an answer, ``train_step`` is called until it returns False.
    5. After each closed round ``state_dict`` is written to the checkpoint. ``resume`` restores it.

    A server has no clock, no thread and no random state of its own: draw from ``seed.torch_rng(seed, ..., round)``, so
    that a run that is resumed ends in the same bits. It never sees a silo's objects, only messages.

    Attributes:
        trains: False where the server only averages what silos have trained.
        lengths: The lengths of the updates, where it averages updates; they let a run go back a round.
        round: The number of closed rounds, which is also the number of the open round.
        flops: The floating-point operations of the server's own training so far.
        seen: The images that the server itself was trained on so far.
        loss: The mean loss of the server's own training in the last closed round, or None.
        device: The device that the server trains on.
        contributions: The weight of each silo in the last closed round and, where silos are clustered, its
            cluster and its distance from the others; for the journal and the report.
    """

    trains: bool = True
    lengths: UpdateLengths | None = None
    round: int = 0
    flops: int = 0
    seen: int = 0
    loss: float | None = None
    device: torch.device = torch.device("cpu")
    contributions: Mapping[str, Mapping[str, float]] = MappingProxyType({})

    def handle(self, silo: str, message: Message) -> Message:
        """Answer an operation of a single silo at once.

        Args:
            silo: The name of the silo.
            message: What it sent; it fits the plan and has passed ``validate``.
        """
        raise NotImplementedError(
            f"{silo} sent {message.op}, which {type(self).__name__} does not answer by itself; override handle"
        )

    def validate(self, silo: str, message: Message) -> None:
        """Raise ``Refused`` for a message that fits the plan, but must not come from this silo now.

        Args:
            silo: The name of the silo.
            message: What it sent.
        """

    def accumulate(self, silo: str, message: Message) -> Accumulated:
        """Take in a message of a group operation, and return what of it is kept until the barrier.

        It is called in the order of the silos' names: a message that comes early waits, so that the order of a sum does
        not depend on who was first. By default nothing is added up, and the whole message is kept.

        Args:
            silo: The name of the silo.
            message: What it sent.
        """
        return Accumulated(message)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Answer all silos that called a group operation, once everyone awaited has called.

        Args:
            op: The name of the operation.
            messages: The messages that ``accumulate`` returned, by silo. A silo that was left out is not in it.

        Returns:
            An answer for each silo in ``messages``.
        """
        raise NotImplementedError(
            f"{sorted(messages)} sent {op}, a group operation that {type(self).__name__} does not answer; "
            "override handle_barrier"
        )

    def train_step(self) -> bool:
        """Do one piece of the server's own training in the open round, and return False when none is left.

        A link calls it whenever nobody waits for an answer. The result must not depend on when it is called.
        """
        return False

    def generator(self) -> TrainedModel | None:
        """Return the trained generator that all silos share, or None where there is none."""
        return None

    def stores(self) -> Mapping[str, Tensors]:
        """Return tensors that are written once, beside the state, because they never change after they are there."""
        return {}

    def load_stores(self, stores: Mapping[str, Tensors]) -> None:
        """Restore what ``stores`` returned. It is called before ``load_state_dict``.

        Args:
            stores: The stored tensors, by name of the store.
        """

    def resume(self, number: int, stores: Mapping[str, Tensors], state: Tensors) -> None:
        """Restore the server as it was after a closed round.

        Args:
            number: The number of rounds that were closed.
            stores: What ``stores`` returned.
            state: What ``state_dict`` returned.
        """
        self.round = number
        self.load_stores(stores)
        self.load_state_dict(state)

    def go_back(self, state: Tensors) -> str | None:
        """Return to the state of an earlier round within the open one, because no silo can train the last weights.

        Args:
            state: What ``state_dict`` returned after that earlier round.

        Returns:
            The silo that is left out of the next round, "" for none, or None where the server averages no updates and
            cannot go back.
        """
        if self.lengths is None:
            return None
        self.load_state_dict(state | add_prefix(self.lengths.state_dict(), LENGTHS))
        return self.lengths.leave_out_mover()

    @abstractmethod
    def state_dict(self) -> Tensors:
        """Return everything that is needed to go on after a closed round, except the round's number."""

    @abstractmethod
    def load_state_dict(self, state: Tensors) -> None:
        """Restore what ``state_dict`` returned. ``round`` is set before.

        Args:
            state: The tensors by name.
        """


class ServerWrapper(Server):
    """A server that answers some operations itself, and passes the others on.

    Args:
        inner: The server that answers everything else.
    """

    def __init__(self, inner: Server) -> None:
        self.inner = inner

    @property
    def round(self) -> int:
        """The round of the inner server."""
        return self.inner.round

    @round.setter  # noqa: A003 - the property above
    def round(self, number: int) -> None:
        self.inner.round = number

    def handle(self, silo: str, message: Message) -> Message:
        """Pass the message on."""
        return self.inner.handle(silo, message)

    def validate(self, silo: str, message: Message) -> None:
        """Pass the message on."""
        self.inner.validate(silo, message)

    def accumulate(self, silo: str, message: Message) -> Accumulated:
        """Pass the message on."""
        return self.inner.accumulate(silo, message)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Pass the messages on."""
        return self.inner.handle_barrier(op, messages)

    def train_step(self) -> bool:
        """Have the inner server train."""
        return self.inner.train_step()

    def generator(self) -> TrainedModel | None:
        """Return the inner server's generator."""
        return self.inner.generator()

    def stores(self) -> Mapping[str, Tensors]:
        """Return what the inner server stores."""
        return self.inner.stores()

    def load_stores(self, stores: Mapping[str, Tensors]) -> None:
        """Restore what the inner server stored."""
        self.inner.load_stores(stores)

    def state_dict(self) -> Tensors:
        """Return the inner server's state, where this one has none of its own."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Tensors) -> None:
        """Restore the inner server's state."""
        self.inner.load_state_dict(state)

    def go_back(self, state: Tensors) -> str | None:
        """Have the inner server go back; what this one holds is not what silos train."""
        return self.inner.go_back(self.inner_state(state))

    def inner_state(self, state: Tensors) -> Tensors:
        """Return the inner server's part of a state."""
        return state
