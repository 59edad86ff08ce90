"""Images that an autoencoder has encoded to latents."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from manyhands.data.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manyhands.models.autoencoder import TrainedAutoencoder


class Moments(NamedTuple):
    """How many numbers some latents consist of, their sum and the sum of their squares."""

    numbers: int
    sum: float
    squares: float


@dataclass(frozen=True)
class Latents:
    """The latents of N images, as distributions: each batch samples them anew and scales them.

    Those of many images are in a file.

    Args:
        mean: The means of the latents, (N, C, H, W).
        deviation: The standard deviations of the latents, (N, C, H, W).
        labels: One class number for each image, (N,), or None.
        scale: What sampled latents are multiplied by.
        flops: The floating-point operations that encoding the images took.
        autoencoder: The autoencoder that encoded them.
    """

    mean: Tensor | Rows
    deviation: Tensor | Rows
    labels: Tensor | None = None
    scale: float = 1.0
    flops: int = 0
    autoencoder: TrainedAutoencoder | None = None

    def __len__(self) -> int:
        return len(self.mean)

    def to(self, device: torch.device) -> Self:
        """Return the same latents on another device; those in a file stay there, and batches of them are moved."""
        labels = None if self.labels is None else self.labels.to(device)
        mean, deviation = (
            rows.to(device) if isinstance(rows, Tensor) else rows for rows in (self.mean, self.deviation)
        )
        return replace(self, mean=mean, deviation=deviation, labels=labels)

    def batch(self, numbers: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return sampled and scaled latents of the images with these numbers, (B, C, H, W), and their labels, (B,)."""
        mean, deviation = (_chosen(rows, numbers) for rows in (self.mean, self.deviation))
        noise = torch.randn(mean.shape, generator=rng, device=mean.device)
        sample = self.scale * (mean + deviation * noise)
        return sample, None if self.labels is None else self.labels[numbers]

    def moments(self) -> Moments:
        """Return the expected moments of sampled latents before they are scaled."""
        parts = [_moments(mean.double(), deviation.double()) for mean, deviation in zip(*self._chunks(), strict=True)]
        return Moments(*(sum(part[i] for part in parts) for i in range(3)))  # type: ignore[arg-type] # numbers is an int

    def _chunks(self) -> Iterator[Iterator[Tensor]]:
        for rows in (self.mean, self.deviation):
            yield rows.chunks() if isinstance(rows, Rows) else iter((rows,))


def _moments(mean: Tensor, deviation: Tensor) -> Moments:
    squares = (mean.square() + deviation.square()).sum()
    return Moments(mean.numel(), mean.sum().item(), squares.item())


def _chosen(rows: Tensor | Rows, numbers: Tensor) -> Tensor:
    return rows.read(numbers).to(numbers.device) if isinstance(rows, Rows) else rows[numbers]


def latent_scale(moments: list[Moments]) -> float:
    """Return 1 / the standard deviation of the latents of all silos together."""
    numbers = sum(moment.numbers for moment in moments)
    mean = sum(moment.sum for moment in moments) / numbers
    variance = sum(moment.squares for moment in moments) / numbers - mean**2
    return 1 / math.sqrt(variance)
