"""The names, shapes and types of a network's weights, and the weights that it begins with, without the network."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import safetensors.torch
import torch

from manyhands.subprocess_task import SubprocessTask
from manyhands.tensors import StateSpec, Tensors, snapshot, state_spec

if TYPE_CHECKING:
    from manyhands.silos.silo import Buildable

_known: dict[Buildable, StateSpec] = {}
_apart = False


def state_spec_of(spec: Buildable) -> StateSpec:
    """Of a network that a specification builds."""
    if spec not in _known:
        with torch.device("meta"):
            _known[spec] = state_spec(spec.build(seed=0).state_dict())
    return _known[spec]


def initial_weights(spec: Buildable, seed: int) -> Tensors:
    """Those that a network begins with."""
    found = _built_apart(spec, seed) if _apart else snapshot(spec.build(seed).state_dict())
    _known.setdefault(spec, state_spec(found))
    return found


def build_in_subprocess() -> None:
    """From now on, let ``initial_weights`` build in a process that ends: the libraries of networks take much memory."""
    global _apart
    _apart = True


def _built_apart(spec: Buildable, seed: int) -> Tensors:
    with tempfile.NamedTemporaryFile(prefix="manyhands-") as file:
        SubprocessTask(_write, spec, seed, file.name).result()
        return safetensors.torch.load_file(file.name)


def _write(spec: Buildable, seed: int, path: str) -> None:
    safetensors.torch.save_file(snapshot(spec.build(seed).state_dict()), path)
