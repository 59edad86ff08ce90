"""The progress of a run: one live line on a terminal, one line for each round elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from manyhands.formatting import size_text

if TYPE_CHECKING:
    from manyhands.runs.recipe import Recipe
    from manyhands.runs.round import Round


class Progress:
    """Shows each round: number, silos, loss, images per second, bytes, time left.

    Args:
        recipe: The recipe of the run.
        quiet: Whether nothing is printed.
    """

    def __init__(self, recipe: Recipe, *, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr, highlight=False, quiet=quiet)
        self._seconds: list[float] = []
        self._live: Live | None = None
        data, silos, rounds = recipe.data, recipe.partition.silos, recipe.method.rounds
        self.console.print(
            f"{recipe.name}: {recipe.method.kind}, {silos} silo{'s' * (silos > 1)}, "
            f"{rounds} round{'s' * (rounds > 1)}, {data.channels} x {data.size} x {data.size}"
        )
        if self.console.is_terminal and not quiet:
            self._live = Live(Text("first round ..."), console=self.console, auto_refresh=False)
            self._live.start(refresh=True)

    def show(self, closed_round: Round) -> None:
        """Show a round."""
        self._seconds.append(closed_round.seconds)
        for silo, reason in closed_round.missing.items():
            self.console.print(f"round {closed_round.number + 1}: without {silo}: {reason}", soft_wrap=True)
        if closed_round.note:
            self.console.print(f"round {closed_round.number + 1}: {closed_round.note}", soft_wrap=True)
        line = round_line(closed_round, sum(self._seconds[-5:]) / len(self._seconds[-5:]))
        if self._live:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)
        else:
            self.console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Leave the last line on the terminal."""
        if self._live:
            self._live.stop()


def round_line(closed_round: Round, pace: float) -> str:
    """One round in at most 80 columns."""
    left = int(pace * (closed_round.rounds - closed_round.number - 1))
    rate = closed_round.images_seen / closed_round.seconds if closed_round.seconds else 0
    return (
        f"round {closed_round.number + 1}/{closed_round.rounds}  {len(closed_round.losses)} silos  "
        f"loss {closed_round.loss:.4f}  {rate:,.0f} images/s  "
        f"{size_text(closed_round.bytes_up + closed_round.bytes_down)} traffic  {left // 60}:{left % 60:02d} left"
    )
