"""Measures the seconds, the bytes and the server's work of a round."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manyhands.errors import printable
from manyhands.messages.operation import RESTING
from manyhands.runs.round import Round
from manyhands.silos.quorum import check_senders

if TYPE_CHECKING:
    from manyhands.links.coordinator import ClosedRound
    from manyhands.messages.ledger import Ledger
    from manyhands.methods.server import Server


@dataclass
class RoundTimer:
    """Measures from one closed round to the next.

    Args:
        ledger: The ledger of the run, for the bytes of a round.
        server: The server, for its work and what it trained on.
    """

    ledger: Ledger
    server: Server

    def __post_init__(self) -> None:
        self.flops, self.seen = self.server.flops, self.server.seen
        self.up, self.down = self.ledger.bytes("up"), self.ledger.bytes("down")
        self.start()

    def start(self) -> None:
        """Note that a round begins."""
        self.began = time.perf_counter()

    def round_of(self, closed: ClosedRound, rounds: int) -> Round:
        """The ``Round`` of a round that was closed."""
        up, down = self.ledger.bytes("up"), self.ledger.bytes("down")
        facts_of_silos: dict[str, dict[str, Any]] = {silo: dict(facts) for silo, facts in closed.facts.items()}
        reasons = {silo: printable(facts.get("withheld", "")) for silo, facts in facts_of_silos.items()}
        withheld = {silo: reason for silo, reason in reasons.items() if reason not in ("", RESTING)}
        entry = Round(
            number=closed.round,
            rounds=rounds,
            seconds=time.perf_counter() - self.began,
            images_seen=sum(facts.get("seen", 0) for facts in facts_of_silos.values()),
            bytes_up=up - self.up,
            bytes_down=down - self.down,
            losses={silo: facts["loss"] for silo, facts in facts_of_silos.items() if facts.get("loss") is not None},
            missing={**closed.missing, **withheld},
            resting=sum(facts.get("withheld") == RESTING for facts in facts_of_silos.values()),
            flops={silo: facts["flops"] for silo, facts in facts_of_silos.items() if facts.get("flops")},
            server_flops=self.server.flops - self.flops,
            server_images_seen=self.server.seen - self.seen,
            server_loss=self.server.loss,
            contributions={silo: dict(figures) for silo, figures in self.server.contributions.items()},
            note=closed.note,
        )
        self.up, self.down, self.flops, self.seen = up, down, self.server.flops, self.server.seen
        return entry


def check_quorum(entry: Round, closed: ClosedRound, quorum: int) -> None:
    """Raise where fewer silos than the quorum could send anything, unless the server has just repeated the round."""
    if not closed.note:
        senders = len(closed.facts) - len(entry.missing.keys() & closed.facts.keys()) - entry.resting
        check_senders(quorum, senders, entry.number, entry.missing)
