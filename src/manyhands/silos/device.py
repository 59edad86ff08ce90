"""Selects the device of a run."""

from __future__ import annotations

import os

import torch

from manyhands.errors import RecipeError


def chosen_device(requested: str, *, repeatable: bool = True) -> str:
    """Return the device to work on; on CUDA, set how the whole process computes.

    Args:
        requested: "auto" for the fastest device of this machine, or the name of a device.
        repeatable: Whether CUDA takes deterministic algorithms, so that a run that is repeated has the same bits;
            otherwise it takes the fastest that it finds. Other devices repeat their bits either way.

    Raises:
        RecipeError: This machine has no such device.
    """
    available = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if requested not in ("auto", "cpu", available):
        raise RecipeError(f"device {requested!r} is not available; this machine has {available}")
    name = available if requested == "auto" else requested
    if name == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(repeatable, warn_only=True)
        torch.backends.cudnn.benchmark = not repeatable
    return name
