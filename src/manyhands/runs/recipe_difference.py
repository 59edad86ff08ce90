"""Where two recipes, or other nested values, differ."""

from __future__ import annotations

from typing import Any


def difference(kept: Any, current: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """The first field in which two recipes differ, and both of its values."""
    if isinstance(kept, dict) and isinstance(current, dict):
        for key in sorted(kept.keys() | current.keys(), key=lambda name: (name != "kind", name)):
            if first := difference(kept.get(key), current.get(key), f"{where}.{key}".strip(".")):
                return first
        return None
    lists = isinstance(kept, list | tuple) and isinstance(current, list | tuple)
    same = list(kept) == list(current) if lists else kept == current
    return None if same else (where, kept, current)


def first_difference(kept: Any, current: Any, where: str = "") -> str | None:
    """The first field in which two recipes differ, in words; None where there is none."""
    field_and_values = difference(kept, current, where)
    return field_and_values and f"{field_and_values[0]} was {field_and_values[1]!r}, is now {field_and_values[2]!r}"
