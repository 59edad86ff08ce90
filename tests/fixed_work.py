"""A fixed piece of work, a plain PyTorch loop: its seconds compare the minutes of a suite between machines."""

from __future__ import annotations

import time

import torch
from torch import nn

STEPS = 30


def train() -> None:
    """Steps of a small convolutional network on random images."""
    rng = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 1, 16, 16, generator=rng), torch.randint(10, (64,), generator=rng)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.SiLU(), nn.Conv2d(32, 32, 3), nn.SiLU(), nn.Flatten(), nn.Linear(32 * 12 * 12, 10)
    )
    optimiser = torch.optim.Adam(network.parameters())
    for _ in range(STEPS):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimiser.step()


def seconds() -> float:
    """The least of three times, after one that is not counted, on one thread."""
    torch.set_num_threads(1)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        train()
        times.append(time.perf_counter() - began)
    return min(times[1:])
