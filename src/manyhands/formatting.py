"""Numbers and lists of names as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence


def size_text(count: float) -> str:
    """Bytes for people: 12 B, 3.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count_text(count: float) -> str:
    """A large count for people: 12, 3.4 M."""
    for unit in ("", " k", " M", " G", " T"):
        if count < 1000:
            return f"{count:.0f}" if not unit else f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} P"


def names_text(names: Sequence[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
