"""The names, shapes and types of a network's weights, and its initial weights, without keeping the network."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import safetensors.torch
import torch

from manyhands.subprocess_task import SubprocessTask
from manyhands.tensors import StateSpec, Tensors, snapshot, state_spec

if TYPE_CHECKING:
    from manyhands.models.pretrained import Pretrained
    from manyhands.silos.silo import Buildable

_known: dict[Buildable, StateSpec] = {}
_in_subprocess = False


def state_spec_of(spec: Buildable) -> StateSpec:
    """Return names, shapes and types of the weights of the network that this specification builds."""
    if spec not in _known:
        with torch.device("meta"):
            _known[spec] = state_spec(spec.build(seed=0).state_dict())
    return _known[spec]


def initial_weights(spec: Buildable, seed: int) -> Tensors:
    """Return the initial weights of the network that this specification builds with this seed."""
    weights = _built_in_subprocess(spec, seed) if _in_subprocess else snapshot(spec.build(seed).state_dict())
    _known.setdefault(spec, state_spec(weights))
    return weights


def frozen_hash(spec: Pretrained) -> str:
    """Return the hash of what is frozen of a pretrained model, as this machine has it."""
    return str(SubprocessTask(_frozen_hash, spec).result() if _in_subprocess else _frozen_hash(spec))


def build_in_subprocess() -> None:
    """Let ``initial_weights`` build in a subprocess from now on: the libraries of networks take much memory."""
    global _in_subprocess
    _in_subprocess = True


def _built_in_subprocess(spec: Buildable, seed: int) -> Tensors:
    with tempfile.NamedTemporaryFile(prefix="manyhands-") as file:
        SubprocessTask(_write, spec, seed, file.name).result()
        return safetensors.torch.load_file(file.name)


def _frozen_hash(spec: Pretrained) -> str:
    return spec.build(seed=0).frozen_hash


def _write(spec: Buildable, seed: int, path: str) -> None:
    safetensors.torch.save_file(snapshot(spec.build(seed).state_dict()), path)
