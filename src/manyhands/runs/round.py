"""A round that is closed: its line in the journal, and its state on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from manyhands.messages.ledger import Ledger
    from manyhands.methods.server import Server
    from manyhands.tensors import Tensors


@dataclass(frozen=True, kw_only=True)
class Round:
    """What happened in a round: one line of the journal.

    Args:
        number: The number of the round, counted from 0.
        rounds: The number of rounds of the run.
        seconds: How long the round took.
        images_seen: How many images the silos trained on, with repetitions.
        bytes_up: The bytes that silos sent.
        bytes_down: The bytes that silos received.
        losses: The mean training loss of each silo.
        missing: The silos that took no part, with the reason.
        resting: How many silos were not selected for this round.
        flops: The work of each silo, in FLOP.
        server_flops: The work of the server, in FLOP.
        server_images_seen: How many released images the server trained on, with repetitions.
        server_loss: The mean training loss of the server.
        metrics: The figures, where the round was evaluated.
        contributions: The cluster of each silo, its distance from the others and its weight, for methods that cluster.
        note: What the server did in addition to its work.
    """

    number: int
    rounds: int
    seconds: float
    images_seen: int
    bytes_up: int
    bytes_down: int
    losses: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    resting: int = 0
    flops: dict[str, int] = field(default_factory=dict)
    server_flops: int = 0
    server_images_seen: int = 0
    server_loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    contributions: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""

    @property
    def loss(self) -> float:
        """The mean loss of the silos; that of the server where no silo has one, and NaN where neither has."""
        if self.losses:
            return sum(self.losses.values()) / len(self.losses)
        return float("nan") if self.server_loss is None else self.server_loss


@dataclass(frozen=True, kw_only=True)
class State:
    """A closed round, as it is written to disk.

    Args:
        round: How many rounds are closed.
        server: The tensors of the server.
        memories: The tensors that each silo keeps.
        roster: The silos, with their numbers of images.
        ledger: The entries of the ledger.
        stores: Tensors of the server that never change, which are written once.
    """

    round: int
    server: Tensors
    memories: Mapping[str, Mapping[str, Tensor]]
    roster: dict[str, int]
    ledger: list[dict[str, Any]]
    stores: Mapping[str, Tensors] = field(default_factory=dict)

    @classmethod
    def of(
        cls, server: Server, roster: dict[str, int], ledger: Ledger, memories: Mapping[str, Mapping[str, Tensor]]
    ) -> State:
        """The state after the newest round that a server has closed.

        Args:
            server: The server.
            roster: The silos, with their numbers of images.
            ledger: The ledger of the run.
            memories: The tensors that each silo keeps, as far as this process has them.
        """
        return cls(
            round=server.round,
            server=server.state_dict(),
            memories=memories,
            roster=roster,
            ledger=ledger.entries(),
            stores=server.stores(),
        )

    def restore(self, server: Server, ledger: Ledger) -> None:
        """Give a server and a ledger what they had when the round was closed."""
        server.resume(self.round, self.stores, self.server)
        ledger.load(self.ledger)
