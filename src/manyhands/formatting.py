"""Formats numbers and lists of names for people."""

from __future__ import annotations

from collections.abc import Sequence


def size_text(count: float) -> str:
    """Format a number of bytes: "12 B", "3.4 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


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
