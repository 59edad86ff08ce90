"""The pixels of images that may be in a file: each batch is read when it is used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from manyhands.data.images import Images, checked


@dataclass(frozen=True)
class LazyPixels:
    """The pixels of N images as bytes, (N, C, H, W), of which only those that are indexed are read.

    Args:
        images: The images.
        turned: Whether they are followed by the same images turned by 90, 180 and 270 degrees: 4 N images.
    """

    images: Images
    turned: bool = False

    def __len__(self) -> int:
        return len(self.images) * (4 if self.turned else 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all of them."""
        return (len(self), *self.images.shape[1:])

    def __getitem__(self, numbers: Tensor) -> Tensor:
        pixels = self.images.read(numbers % len(self.images))
        for turn in (1, 2, 3) if self.turned else ():
            chosen = numbers // len(self.images) == turn
            pixels[chosen] = torch.rot90(pixels[chosen], turn, (2, 3))
        return pixels


def pixel_batches(images: Tensor | LazyPixels, size: int) -> Iterator[Tensor]:
    """Yield images as bytes, ``size`` at a time; a tensor may be of bytes, or of floats in [-1, 1]."""
    if isinstance(images, Tensor):
        yield from torch.split(checked(images), size)
        return
    for numbers in torch.arange(len(images)).split(size):
        yield images[numbers]
