"""Images as the latents of an autoencoder."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Self

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from manyhands.models.autoencoder import TrainedAutoencoder


class Moments(NamedTuple):
    """Of all numbers in some latents: how many they are, their sum and that of their squares."""

    numbers: int
    sum: float
    squares: float


@dataclass(frozen=True)
class Latents:
    """The mean and the deviation of each image's latents, and its label; a batch is drawn from these and scaled.

    ``flops`` is what it took to encode the images with ``autoencoder``.
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
        """The same latents, where they are used."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, mean=self.mean.to(device), deviation=self.deviation.to(device), labels=labels)

    def batch(self, numbers: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Latents drawn anew and scaled, and their labels."""
        mean = self.mean[numbers]
        noise = torch.randn(mean.shape, generator=rng, device=mean.device)
        drawn = self.scale * (mean + self.deviation[numbers] * noise)
        return drawn, None if self.labels is None else self.labels[numbers]

    def moments(self) -> Moments:
        """What is expected of latents that are drawn, before they are scaled."""
        mean, deviation = self.mean.double(), self.deviation.double()
        squares = (mean.square() + deviation.square()).sum()
        return Moments(mean.numel(), mean.sum().item(), squares.item())


def latent_scale(moments: list[Moments]) -> float:
    """1 / the deviation of all that was counted, with whatever silo it is."""
    numbers = sum(each.numbers for each in moments)
    mean = sum(each.sum for each in moments) / numbers
    variance = sum(each.squares for each in moments) / numbers - mean**2
    return 1 / math.sqrt(variance)
