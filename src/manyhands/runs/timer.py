"""Measures what a round took, in seconds, bytes and the server's work."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manyhands.errors import QuorumLost, printable
from manyhands.messages.operation import RESTING
from manyhands.runs.run_folder import Round

if TYPE_CHECKING:
    from manyhands.links.coordinator import ClosedRound
    from manyhands.messages.ledger import Ledger
    from manyhands.methods.base import Server


@dataclass
class RoundTimer:
    """Runs from one closed round to the next."""

    ledger: Ledger
    server: Server

    def __post_init__(self) -> None:
        self.flops, self.seen = self.server.flops, self.server.seen
        self.up, self.down = self.ledger.bytes("up"), self.ledger.bytes("down")
        self.start()

    def start(self) -> None:
        """A round begins."""
        self.began = time.perf_counter()

    def round_of(self, closed: ClosedRound, rounds: int) -> Round:
        """A round has ended."""
        up, down = self.ledger.bytes("up"), self.ledger.bytes("down")
        said: dict[str, dict[str, Any]] = {silo: dict(facts) for silo, facts in closed.facts.items()}
        why = {silo: printable(facts.get("withheld", "")) for silo, facts in said.items()}
        withheld = {silo: words for silo, words in why.items() if words not in ("", RESTING)}
        done = Round(
            closed.round,
            rounds,
            time.perf_counter() - self.began,
            sum(facts.get("seen", 0) for facts in said.values()),
            up - self.up,
            down - self.down,
            {silo: facts["loss"] for silo, facts in said.items() if facts.get("loss") is not None},
            {**closed.missing, **withheld},
            sum(facts.get("withheld") == RESTING for facts in said.values()),
            {silo: facts["flops"] for silo, facts in said.items() if facts.get("flops")},
            self.server.flops - self.flops,
            self.server.seen - self.seen,
            self.server.loss,
            weighed={silo: dict(told) for silo, told in self.server.weighed.items()},
            note=closed.note,
        )
        self.up, self.down, self.flops, self.seen = up, down, self.server.flops, self.server.seen
        return done


def check_quorum(done: Round, closed: ClosedRound, quorum: int) -> None:
    """Raise where fewer silos than that could send anything, unless the server has just gone back for them."""
    if not closed.note and len(closed.facts) - len(done.missing.keys() & closed.facts.keys()) - done.resting < quorum:
        why = "; ".join(f"{silo}: {reason}" for silo, reason in done.missing.items())
        raise QuorumLost(f"round {done.number + 1}: fewer than {quorum} silos could send anything ({why})")
