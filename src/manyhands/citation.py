"""The papers behind a run, read from the docstrings of what it was told to use."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Iterator


def citations(*told: BaseModel) -> list[str]:
    """The references of what was told and of everything in it, each once."""
    parts = [part for each in told for part in _parts(each)]
    return list(dict.fromkeys(reference for part in parts for reference in references(type(part))))


def references(kind: type) -> list[str]:
    """The entries under ``References:`` in a docstring; a line further in goes on with the one before."""
    _, _, tail = (inspect.getdoc(kind) or "").partition("References:\n")
    entries = tail.split("\n\n")[0].replace("\n        ", " ").splitlines()
    return [entry.strip() for entry in entries]


def _parts(told: object) -> Iterator[BaseModel]:
    if isinstance(told, BaseModel):
        yield told
        for name in type(told).model_fields:
            yield from _parts(getattr(told, name))
    elif isinstance(told, dict):
        for value in told.values():
            yield from _parts(value)
