"""Images of which all is known: a Gaussian cloud, and two sharp classes."""

from __future__ import annotations

import torch
from torch import Tensor

from manyhands.diffusion.objective import Diffusion
from manyhands.diffusion.schedule import Schedule

SCHEDULE = Schedule()
DIFFUSION = Diffusion()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(count: int, seed: int = 0, size: int = 4, deviation: float = 0.25) -> Tensor:
    """Gaussian images with brighter and dimmer directions, hardly ever out of [-1, 1]."""
    falling = torch.linspace(1.5, 0.5, size * size).reshape(size, size)
    return deviation * falling * torch.randn(count, 1, size, size, generator=rng(seed + 10**6)) + 0.1


def oracle(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """The best denoiser of the cloud, written out."""
    variance = (0.25 * torch.linspace(1.5, 0.5, x_t[0].numel()).reshape(x_t.shape[1:])) ** 2
    a = float(SCHEDULE.alpha_bar()[t])
    x_0 = 0.1 + a**0.5 * variance / (a * variance + 1 - a) * (x_t - a**0.5 * 0.1)
    return x_0, (x_t - a**0.5 * x_0) / (1 - a) ** 0.5


def striped(count: int, seed: int = 0, size: int = 4) -> tuple[Tensor, Tensor]:
    """Images that are bright above or bright below, and which."""
    g = rng(seed + 10**6)
    labels = torch.randint(2, (count,), generator=g)
    x_0 = 0.1 * torch.randn(count, 1, size, size, generator=g) - 0.5
    for label in (0, 1):
        x_0[labels == label, :, label * size // 2 : (label + 1) * size // 2] += 1
    return x_0, labels
