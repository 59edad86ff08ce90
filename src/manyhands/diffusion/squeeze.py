"""Images squeezed into a norm before they are noised, and stretched back when they are drawn: nothing is cut off.

Clipping takes the norms of all large images away, and what is learnt from clipped images draws clipped ones. Here norms
up to half of the bound stay; those beyond, up to the largest that an image can have, share the other half, evenly in
their logarithm. A release is bounded all the same, and whoever draws has each image back; an error of its norm, as a
share of it, grows by log2(2 largest / bound): by 2 where the bound is half of the largest norm.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from manyhands.diffusion.release import box_norm

if TYPE_CHECKING:
    from torch import Tensor


def squeezed(x: Tensor, norm: float | None) -> Tensor:
    """Images in [-1, 1], none of a norm beyond this one; each is multiplied by a number from 0 to 1."""
    if norm is None:
        return x
    return x * shaped(squeezing(_norms(x), norm, box_norm(x[0].numel())), x)


def stretched(x: Tensor, norm: float | None) -> Tensor:
    """What was squeezed, as it was before; where a norm is beyond the bound, it is taken to be the bound."""
    if norm is None or norm >= (most := box_norm(x[0].numel())):
        return x
    own, half = _norms(x), norm / 2
    before = half * (own.clamp(max=norm) / half) ** math.log2(most / half)
    return x * shaped(torch.where(own <= half, 1.0, before / own), x)


def squeezing(own: Tensor, norm: float | None, most: float) -> Tensor:
    """What images of these norms, of at most ``most``, are multiplied by; 1 to the last digit where they stay."""
    if norm is None or norm >= most:
        return torch.ones_like(own)
    half = norm / 2
    return torch.where(own <= half, 1.0, half * (own / half) ** (1 / math.log2(most / half)) / own)


def shaped(each: Tensor, x: Tensor) -> Tensor:
    """A number for each image, to multiply a batch with."""
    return each.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))


def _norms(x: Tensor) -> Tensor:
    own: Tensor = x.flatten(1).double().norm(dim=1)
    return own
