"""Images that an autoencoder has encoded to latents."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Self

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from manyhands.models.autoencoder import TrainedAutoencoder


class Moments(NamedTuple):
    """How many numbers some latents consist of, their sum and the sum of their squares."""

    numbers: int
    sum: float
    squares: float


@dataclass(frozen=True)
class Latents:
    """The latents of N images, as distributions: each batch samples them anew and scales them.

    Args:
        mean: The means of the latents, (N, C, H, W).
        deviation: The standard deviations of the latents, (N, C, H, W).
        labels: One class number for each image, (N,), or None.
        scale: What sampled latents are multiplied by.
        flops: The floating-point operations that encoding the images took.
        autoencoder: The autoencoder that encoded them.
    """

    mean: Tensor
    deviation: Tensor
    labels: Tensor | None = None
    scale: float = 1.0
    flops: int = 0
    autoencoder: TrainedAutoencoder | None = None

    def __len__(self) -> int:
        return len(self.mean)

    def to(self, device: torch.device) -> Self:
        """Return the same latents on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, mean=self.mean.to(device), deviation=self.deviation.to(device), labels=labels)

    def batch(self, numbers: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return sampled and scaled latents of the images with these numbers, (B, C, H, W), and their labels, (B,)."""
        mean = self.mean[numbers]
        noise = torch.randn(mean.shape, generator=rng, device=mean.device)
        sample = self.scale * (mean + self.deviation[numbers] * noise)
        return sample, None if self.labels is None else self.labels[numbers]

    def moments(self) -> Moments:
        """Return the expected moments of sampled latents before they are scaled."""
        mean, deviation = self.mean.double(), self.deviation.double()
        squares = (mean.square() + deviation.square()).sum()
        return Moments(mean.numel(), mean.sum().item(), squares.item())


def latent_scale(moments: list[Moments]) -> float:
    """Return 1 / the standard deviation of the latents of all silos together."""
    numbers = sum(moment.numbers for moment in moments)
    mean = sum(moment.sum for moment in moments) / numbers
    variance = sum(moment.squares for moment in moments) / numbers - mean**2
    return 1 / math.sqrt(variance)
