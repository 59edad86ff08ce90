"""Images that an autoencoder has encoded to latents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from manyhands.data.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manyhands.models.autoencoder import TrainedAutoencoder


MIN_VARIANCE = 1e-8
"""A channel that varies less is scaled as if it varied so much: a smaller variance drowns in rounding."""


class Moments(NamedTuple):
    """How many numbers each channel of some latents has, and by channel their sums and those of their squares, (C,)."""

    numbers: int
    sums: Tensor
    squares: Tensor


class Normalization(NamedTuple):
    """What gives each channel of latents z the mean 0 and the deviation 1: ``(z - shift) * scale``, (C,) each."""

    shift: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Latents:
    """The latents of N images, as distributions: each batch samples them anew, shifts and scales them.

    Those of many images are in a file.

    Args:
        mean: The means of the latents, (N, C, H, W).
        deviation: The standard deviations of the latents, (N, C, H, W).
        labels: One class number for each image, (N,), or None.
        shift: What is subtracted from sampled latents: one number, or one for each channel, (C, 1, 1).
        scale: What they are multiplied by then: one number, or one for each channel, (C, 1, 1).
        flops: The floating-point operations that encoding the images took.
        autoencoder: The autoencoder that encoded them.
    """

    mean: Tensor | Rows
    deviation: Tensor | Rows
    labels: Tensor | None = None
    shift: Tensor | float = 0.0
    scale: Tensor | float = 1.0
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
        shift, scale = (part.to(device) if isinstance(part, Tensor) else part for part in (self.shift, self.scale))
        return replace(self, mean=mean, deviation=deviation, labels=labels, shift=shift, scale=scale)

    def batch(self, numbers: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return sampled and normalized latents of the images with these numbers, (B, C, H, W), and labels, (B,)."""
        mean, deviation = (_chosen(rows, numbers) for rows in (self.mean, self.deviation))
        noise = torch.randn(mean.shape, generator=rng, device=mean.device)
        sample = self.scale * (mean + deviation * noise - self.shift)
        return sample, None if self.labels is None else self.labels[numbers]

    def moments(self) -> Moments:
        """Return the expected moments of sampled latents before they are shifted and scaled."""
        parts = [_moments(mean.double(), deviation.double()) for mean, deviation in zip(*self._chunks(), strict=True)]
        numbers, sums, squares = zip(*parts, strict=True)
        return Moments(sum(numbers), torch.stack(sums).sum(0), torch.stack(squares).sum(0))

    def normalized(self, normalization: Normalization) -> Self:
        """Return the latents with each channel shifted and scaled, and the autoencoder that encodes to these."""
        shift, scale = (part.float()[:, None, None] for part in normalization)
        autoencoder = self.autoencoder and self.autoencoder.normalized(*normalization)
        return replace(self, shift=shift, scale=scale, autoencoder=autoencoder)

    def _chunks(self) -> Iterator[Iterator[Tensor]]:
        for rows in (self.mean, self.deviation):
            yield rows.chunks() if isinstance(rows, Rows) else iter((rows,))


def _moments(mean: Tensor, deviation: Tensor) -> Moments:
    squares = (mean.square() + deviation.square()).sum((0, 2, 3))
    return Moments(mean[:, 0].numel(), mean.sum((0, 2, 3)), squares)


def _chosen(rows: Tensor | Rows, numbers: Tensor) -> Tensor:
    return rows.read(numbers).to(numbers.device) if isinstance(rows, Rows) else rows[numbers]


def normalization_of(moments: list[Moments]) -> Normalization:
    """Return the normalization of the latents of all silos together."""
    numbers = sum(moment.numbers for moment in moments)
    mean = torch.stack([moment.sums for moment in moments]).sum(0) / numbers
    variance = torch.stack([moment.squares for moment in moments]).sum(0) / numbers - mean.square()
    return Normalization(mean, variance.clamp(min=MIN_VARIANCE).rsqrt())
