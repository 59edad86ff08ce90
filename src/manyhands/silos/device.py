"""The device that a run works on."""

from __future__ import annotations

import os

import torch

from manyhands.errors import RecipeError


def chosen_device(asked: str) -> str:
    """The device to work on. CUDA is told, for the whole process, to repeat itself exactly."""
    found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if asked not in ("auto", "cpu", found):
        raise RecipeError(f"device {asked!r} is not here; this machine has {found}")
    name = found if asked == "auto" else asked
    if name == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    return name
