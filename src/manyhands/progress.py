"""The live line of a run: one that moves on a terminal, one for each round elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from manyhands.plan import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manyhands.journal import Round
    from manyhands.recipe import Recipe


class Progress:
    """Tells of each round: number, silos, loss, images a second, bytes, time left."""

    def __init__(self, recipe: Recipe, *, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr, highlight=False, quiet=quiet)
        self._seconds: list[float] = []
        self._live: Live | None = None
        model = recipe.method.model
        self.console.print(
            f"{recipe.name}: {recipe.method.kind}, {recipe.partition.silos} silos, {recipe.method.rounds} rounds, "
            f"{model.channels} x {model.size} x {model.size}"
        )
        if self.console.is_terminal and not quiet:
            self._live = Live(Text("first round ..."), console=self.console, auto_refresh=False)
            self._live.start(refresh=True)

    def show(self, done: Round) -> None:
        """Tell of a round."""
        self._seconds.append(done.seconds)
        for silo, why in done.missing.items():
            self.console.print(f"round {done.number + 1}: without {silo}: {why}", soft_wrap=True)
        line = round_line(done, sum(self._seconds[-5:]) / len(self._seconds[-5:]))
        if self._live:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)
        else:
            self.console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Leave the last line standing."""
        if self._live:
            self._live.stop()


def print_table(rows: Sequence[Sequence[str]], note: str = "") -> None:
    """A table on standard output, its first row the heads: it fits the terminal, and is plain text elsewhere."""
    heads, *body = rows
    console = Console(highlight=False)
    if console.is_terminal:
        table = Table(*heads, box=SIMPLE)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in body:
            table.add_row(*row)
        console.print(table)
    else:
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        for row in rows:
            cells = [cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row)]
            console.print("  ".join(cells).rstrip(), soft_wrap=True)
    if note:
        console.print(note, soft_wrap=not console.is_terminal)


def round_line(done: Round, pace: float) -> str:
    """One round in at most 80 columns."""
    left = int(pace * (done.rounds - done.number - 1))
    rate = done.images / done.seconds if done.seconds else 0
    return (
        f"round {done.number + 1}/{done.rounds}  {len(done.losses)} silos  loss {done.loss:.4f}  {rate:,.0f} images/s  "
        f"{size_text(done.bytes_up + done.bytes_down)}  {left // 60}:{left % 60:02d} left"
    )
