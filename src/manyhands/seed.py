"""Random numbers: each generator is seeded with the run's seed and the names of its purpose."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def seed_of(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed that differs for every run seed and every sequence of names."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_rng(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Create a PyTorch generator on a device."""
    return torch.Generator(device).manual_seed(seed_of(seed, *names))


def numpy_rng(seed: int, *names: str | int) -> np.random.Generator:
    """Create a NumPy generator."""
    return np.random.default_rng(seed_of(seed, *names))


@contextmanager
def seeded_globally(seed: int, *names: str | int) -> Iterator[None]:
    """Seed PyTorch's global generator, from which modules are initialised, and restore its state afterwards."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed_of(seed, *names))
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
