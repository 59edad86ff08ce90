"""Random numbers: every generator is made from the run's seed and the names of what it is for."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def seed_of(seed: int, *names: str | int) -> int:
    """A 63-bit seed that differs for every run seed and every path of names."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_rng(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on a device."""
    return torch.Generator(device).manual_seed(seed_of(seed, *names))


def numpy_rng(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator."""
    return np.random.default_rng(seed_of(seed, *names))


@contextmanager
def seeded_globally(seed: int, *names: str | int) -> Iterator[None]:
    """PyTorch initialises modules from its global generator, libraries draw from it: seed it, and put it back after."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed_of(seed, *names))
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
