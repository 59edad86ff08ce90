"""The papers behind a run, read from the docstrings of what it was told to use."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from manyhands.diffusion.sample import Sampling
from manyhands.models.gan import Gan
from manyhands.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator


def citations(*told: Spec) -> list[str]:
    """The references of what was told and of everything in it, each once; a GAN's draw needs none."""
    drawn_at_once = any(isinstance(getattr(each, "model", None), Gan) for each in told)
    parts = [part for each in told if not (drawn_at_once and isinstance(each, Sampling)) for part in _parts(each)]
    return list(dict.fromkeys(reference for part in parts for reference in references(part)))


def references(part: object) -> list[str]:
    """The entries under ``References:`` in a docstring; a line further in goes on with the one before."""
    _, _, tail = (inspect.getdoc(part) or "").partition("References:\n")
    entries = tail.split("\n\n")[0].replace("\n        ", " ").splitlines()
    return [entry.strip() for entry in entries]


def _parts(told: object) -> Iterator[object]:
    """Types and functions that have a docstring."""
    if isinstance(told, Spec):
        yield type(told)
        for part in told.cited_parts()[1:]:
            yield from _parts(part)
    elif isinstance(told, dict):
        for value in told.values():
            yield from _parts(value)
    elif inspect.isclass(told) or inspect.isfunction(told):
        yield told
