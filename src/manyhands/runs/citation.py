"""The papers behind a run, read from the docstrings of the specifications that it uses."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from manyhands.diffusion.sampling import Sampling
from manyhands.models.base import Denoiser
from manyhands.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator


def citations(*specs: Spec) -> list[str]:
    """The references of specifications and of everything in them, each once; those of sampling are a denoiser's."""
    is_diffusion = any(isinstance(getattr(spec, "model", None), Denoiser) for spec in specs)
    parts = [part for spec in specs if is_diffusion or not isinstance(spec, Sampling) for part in _parts(spec)]
    return list(dict.fromkeys(reference for part in parts for reference in references(part)))


def references(part: object) -> list[str]:
    """The entries under ``References:`` in a docstring; a line that is indented more continues the one before."""
    _, _, tail = (inspect.getdoc(part) or "").partition("References:\n")
    entries = tail.split("\n\n")[0].replace("\n        ", " ").splitlines()
    return [entry.strip() for entry in entries]


def _parts(value: object) -> Iterator[object]:
    """The types and functions in a value that have a docstring."""
    if isinstance(value, Spec):
        yield type(value)
        for part in value.cited_parts()[1:]:
            yield from _parts(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _parts(part)
    elif inspect.isclass(value) or inspect.isfunction(value):
        yield value
