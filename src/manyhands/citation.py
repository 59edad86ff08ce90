"""The papers behind a run, read from the docstrings of what it was told to use."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Iterator


def citations(told: BaseModel) -> list[str]:
    """The references of a recipe and of everything in it, each once."""
    return list(dict.fromkeys(reference for part in _parts(told) for reference in references(type(part))))


def references(kind: type) -> list[str]:
    """The lines under ``References:`` in a docstring; a deeper line goes on with the one before."""
    lines = inspect.getdoc(kind) or ""
    _, _, tail = lines.partition("References:\n")
    found: list[str] = []
    for line in tail.split("\n\n")[0].splitlines():
        if found and not found[-1].rstrip().endswith((")", *"0123456789", "Repository")):
            found[-1] = f"{found[-1]} {line.strip()}"
        elif line.strip():
            found.append(line.strip())
    return found


def _parts(told: object) -> Iterator[BaseModel]:
    if isinstance(told, BaseModel):
        yield told
        for name in type(told).model_fields:
            yield from _parts(getattr(told, name))
    elif isinstance(told, dict):
        for value in told.values():
            yield from _parts(value)
