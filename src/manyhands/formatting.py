"""Formats numbers, lists of names and tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TextTable:
    """A table of text: on a page, on a terminal, or in a file.

    Args:
        heads: The head of each column.
        rows: The rows, each with a cell for every column.
        left: How many of the first columns hold words; the others hold numbers, which are aligned to the right.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


def number_text(value: float | None) -> str:
    """Format a number with three significant digits; "-" where there is none."""
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def size_text(count: float) -> str:
    """Format a number of bytes: "12 B", "3.4 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration_text(seconds: float) -> str:
    """Return a time as people say it, such as 40 s, 3 min or 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def count_text(count: float) -> str:
    """Format a large count: "12", "3.4 M"."""
    for unit in ("", " k", " M", " G", " T"):
        if count < 1000:
            return f"{count:.0f}" if not unit else f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} P"


def names_text(names: Sequence[str], limit: int = 8) -> str:
    """List the first few names, and say how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
