"""Bounds the norm of images before noise is added, and restores it in samples, without clipping.

Clipping loses the norms of all large images, and a model of clipped images samples clipped images. Squeezing keeps
norms up to half of the bound. Larger norms, up to the largest that an image can have, share the other half, evenly in
their logarithm. Releases have a bounded norm too, and every image can be restored. The relative error of a norm grows
by the factor log2(2 largest / bound): by 2 where the bound is half of the largest norm.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from manyhands.diffusion.release_privacy import box_norm
from manyhands.tensors import per_image

if TYPE_CHECKING:
    from torch import Tensor


def squeezed(x: Tensor, norm: float | None) -> Tensor:
    """Scale each image by a number from 0 to 1, so that no norm is beyond the bound.

    Args:
        x: Images in [-1, 1], (B, C, H, W).
        norm: The bound; None returns the images as they are.
    """
    if norm is None:
        return x
    return x * per_image(squeezing(_norms(x), norm, box_norm(x[0].numel())).to(x.dtype), x)


def stretched(x: Tensor, norm: float | None) -> Tensor:
    """Undo ``squeezed``; a norm beyond the bound counts as the bound.

    Args:
        x: Squeezed images, (B, C, H, W).
        norm: The bound that they were squeezed into; None returns the images as they are.
    """
    if norm is None or norm >= (largest := box_norm(x[0].numel())):
        return x
    norms, half = _norms(x), norm / 2
    before = half * (norms.clamp(max=norm) / half) ** math.log2(largest / half)
    return x * per_image(torch.where(norms <= half, 1.0, before / norms).to(x.dtype), x)


def squeezing(norms: Tensor, norm: float | None, largest: float) -> Tensor:
    """Return the factors that squeeze images of these norms; a factor is exactly 1 for an image that stays.

    Args:
        norms: The norms of the images, (B,).
        norm: The bound; None for no bound.
        largest: The largest norm that an image can have.
    """
    if norm is None or norm >= largest:
        return torch.ones_like(norms)
    half = norm / 2
    return torch.where(norms <= half, 1.0, half * (norms / half) ** (1 / math.log2(largest / half)) / norms)


def _norms(x: Tensor) -> Tensor:
    precise = x.float() if x.device.type == "mps" else x.double()  # there is no float64 on MPS
    norms: Tensor = precise.flatten(1).norm(dim=1)
    return norms
