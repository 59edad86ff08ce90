"""Prints tables and pages: laid out on a terminal, plain lines off it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from manyhands.formatting import TextTable

GAP = 2
"""The number of spaces between two columns of a table."""


def print_table(table: TextTable, note: str = "") -> None:
    """Print a table: off a terminal a line for each row, on it in as many pieces as its width requires."""
    lines = [table.heads, *table.rows] if table.heads else table.rows
    widths = [max(cell_len(cell) for cell in column) for column in zip(*lines, strict=True)]
    console = Console(highlight=False)
    terminal = console.is_terminal
    if not terminal:
        console = Console(highlight=False, width=sum(widths) + GAP * len(widths))
    for number, columns in enumerate(_pieces(widths, console.width, table.left)):
        with console.capture() as printed:
            console.print(_laid_out(table, columns, lined=terminal))
        text = "\n".join(line.rstrip() for line in printed.get().splitlines())
        console.file.write("\n" * (number > 0) + text + "\n" * bool(text))
    if note:
        console.print(Text(note), soft_wrap=not terminal)


def print_paths(paths: Mapping[str, Path]) -> None:
    """Print what was written, each path on one line, however long it is, so that it can be copied."""
    for name, path in paths.items():
        typer.echo(f"{name:9}{path}")


def print_page(text: str) -> None:
    """A page of Markdown on standard output, laid out on a terminal."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(Markdown(text, hyperlinks=False))
    else:
        console.file.write(text)


def _laid_out(table: TextTable, columns: Sequence[int], *, lined: bool) -> Table:
    """Some columns of a table, with a line below the heads or without."""
    heads = bool(table.heads)
    laid_out = Table(
        box=SIMPLE_HEAD if lined else None, show_edge=False, pad_edge=False, show_header=heads,
        padding=(0, GAP - lined, 0, 0),
    )  # fmt: skip
    for i in columns:
        laid_out.add_column(
            Text(table.heads[i]) if heads else "", justify="left" if i < table.left else "right", overflow="fold"
        )
    for row in table.rows:
        laid_out.add_row(*(Text(row[i]) for i in columns))
    return laid_out


def _pieces(widths: Sequence[int], width: int, left: int = 1) -> list[list[int]]:
    """The columns of each piece: the first one, and as many others as fit; columns of words wrap, and need not."""
    if left >= len(widths):
        return [list(range(len(widths)))]
    pieces: list[list[int]] = []
    for column in range(1, len(widths)):
        fits = pieces and sum(widths[i] + GAP for i in [*pieces[-1], column]) - GAP <= width
        if fits:
            pieces[-1].append(column)
        else:
            pieces.append([0, column])
    return pieces or [[0]]
