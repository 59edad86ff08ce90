"""The progress of a run: one live line on a terminal, one line for each round elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from manyhands.formatting import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manyhands.runs.recipe import Recipe
    from manyhands.runs.run_folder import Round


class Progress:
    """Shows each round: number, silos, loss, images per second, bytes, time left."""

    def __init__(self, recipe: Recipe, *, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr, highlight=False, quiet=quiet)
        self._seconds: list[float] = []
        self._live: Live | None = None
        model, silos, rounds = recipe.method.model, recipe.partition.silos, recipe.method.rounds
        self.console.print(
            f"{recipe.name}: {recipe.method.kind}, {silos} silo{'s' * (silos > 1)}, "
            f"{rounds} round{'s' * (rounds > 1)}, {model.channels} x {model.size} x {model.size}"
        )
        if self.console.is_terminal and not quiet:
            self._live = Live(Text("first round ..."), console=self.console, auto_refresh=False)
            self._live.start(refresh=True)

    def show(self, done: Round) -> None:
        """Show a round."""
        self._seconds.append(done.seconds)
        for silo, reason in done.missing.items():
            self.console.print(f"round {done.number + 1}: without {silo}: {reason}", soft_wrap=True)
        if done.note:
            self.console.print(f"round {done.number + 1}: {done.note}", soft_wrap=True)
        line = round_line(done, sum(self._seconds[-5:]) / len(self._seconds[-5:]))
        if self._live:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)
        else:
            self.console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Leave the last line on the terminal."""
        if self._live:
            self._live.stop()


def print_table(rows: Sequence[Sequence[str]], note: str = "") -> None:
    """Print a table whose first row is the heads; on a terminal, in as many pieces as its width requires."""
    console = Console(highlight=False)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pieces = _pieces(widths, console.width) if console.is_terminal else [list(range(len(widths)))]
    for piece in pieces:
        for number, row in enumerate(rows):
            cells = [row[i].ljust(widths[i]) if i == 0 else row[i].rjust(widths[i]) for i in piece]
            style = "bold" if number == 0 else ""
            console.print(Text("  ".join(cells).rstrip(), style), soft_wrap=True)
        if piece is not pieces[-1]:
            console.print()
    if note:
        console.print(note, soft_wrap=not console.is_terminal)


def print_page(text: str) -> None:
    """A page of Markdown on standard output, laid out on a terminal."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(Markdown(text, hyperlinks=False))
    else:
        console.file.write(text)


def _pieces(widths: Sequence[int], width: int) -> list[list[int]]:
    """The columns of each piece: the first one, and as many others as fit."""
    pieces: list[list[int]] = []
    for column in range(1, len(widths)):
        fits = pieces and sum(widths[i] + 2 for i in [*pieces[-1], column]) - 2 <= width
        if fits:
            pieces[-1].append(column)
        else:
            pieces.append([0, column])
    return pieces or [[0]]


def round_line(done: Round, pace: float) -> str:
    """One round in at most 80 columns."""
    left = int(pace * (done.rounds - done.number - 1))
    rate = done.images / done.seconds if done.seconds else 0
    return (
        f"round {done.number + 1}/{done.rounds}  {len(done.losses)} silos  loss {done.loss:.4f}  {rate:,.0f} images/s  "
        f"{size_text(done.bytes_up + done.bytes_down)}  {left // 60}:{left % 60:02d} left"
    )
