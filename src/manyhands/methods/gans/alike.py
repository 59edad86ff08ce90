"""How alike silos are, seen from images that their generators made."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MOST = 16
"""The most directions in which images are looked at."""
LEAST = 1e-2
"""Added to variances, as a share of their mean: few images do not fill all directions."""


def distances(images: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """How far each is from each other: half of KL(P || Q) + KL(Q || P), of Gaussians.

    They are those of the images' coordinates in the directions in which all images together vary most.
    """
    silos = sorted(images)
    flat = {silo: images[silo].flatten(1).double().cpu() for silo in silos}
    every = torch.cat([flat[silo] for silo in silos])
    _, directions = torch.linalg.eigh((every - every.mean(0)).T.cov())
    seen = {silo: flat[silo] @ directions[:, -MOST:] for silo in silos}
    means = {silo: x.mean(0) for silo, x in seen.items()}
    spread = {silo: _filled(x.T.cov()) for silo, x in seen.items()}
    return {a: {b: _between(means[a] - means[b], spread[a], spread[b]) for b in silos} for a in silos}


def shares(apart: Mapping[str, float], temperature: float) -> dict[str, float]:
    """What each counts for one: exp(-d / temperature), as a share of all."""
    each = (-torch.tensor(list(apart.values()), dtype=torch.float64) / temperature).softmax(0).tolist()
    return dict(zip(apart, each, strict=True))


def _filled(spread: Tensor) -> Tensor:
    spread = torch.atleast_2d(spread)
    return spread + (LEAST * spread.diagonal().mean() + 1e-12) * torch.eye(len(spread), dtype=spread.dtype)


def _between(apart: Tensor, a: Tensor, b: Tensor) -> float:
    """The halved sum of both divergences: the logarithms of the determinants cancel."""
    back, there = torch.linalg.inv(a), torch.linalg.inv(b)
    traces = (there @ a).trace() + (back @ b).trace() - 2 * len(a)
    return max(float(traces + apart @ (there + back) @ apart) / 4, 0.0)
