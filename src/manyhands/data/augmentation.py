"""Random changes of training images that leave what they show as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from manyhands.tensors import per_image

if TYPE_CHECKING:
    from torch import Tensor


def flipped(x: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror each image left to right with a probability of one half.

    Args:
        x: Images, (B, C, H, W).
        rng: The random numbers, on the device of the images.
    """
    mirror = torch.rand(len(x), generator=rng, device=x.device) < 0.5
    return torch.where(per_image(mirror, x), x.flip(-1), x)


def shifted(x: Tensor, pixels: int, rng: torch.Generator) -> Tensor:
    """Move each image at random, up or down and left or right; what is missing at an edge is its reflection.

    Args:
        x: Images, (B, C, H, W), with sides of more than ``pixels``.
        pixels: By up to how many pixels.
        rng: The random numbers, on the device of the images.
    """
    by = torch.randint(-pixels, pixels + 1, (2, len(x), 1), generator=rng, device=x.device)
    rows, columns = (_reflected(side, by[i]) for i, side in enumerate(x.shape[2:]))
    images, channels = (torch.arange(count, device=x.device) for count in x.shape[:2])
    return x[images[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _reflected(side: int, by: Tensor) -> Tensor:
    """Return which row (or column) of the image each row of the moved image is, (B, side)."""
    last = side - 1
    return last - (last - (torch.arange(side, device=by.device) + by).abs()).abs()
