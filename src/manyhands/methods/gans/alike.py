"""How alike silos are, seen from images that their generators made."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MAX_DIRECTIONS = 16
"""The most directions in which images are looked at."""


def distances(images: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """How far each is from each other: the Frechet distance of Gaussians, as a share of the variance of all images.

    They are those of the images' coordinates in the directions in which all images together vary most. It is 0 between
    equals, and 4 between two halves that are each of one image.
    """
    silos = sorted(images)
    flat = {silo: images[silo].flatten(1).double().cpu() for silo in silos}
    every = torch.cat([flat[silo] for silo in silos])
    _, singular, directions = torch.linalg.svd(every - every.mean(0), full_matrices=False)
    seen = {silo: flat[silo] @ directions[:MAX_DIRECTIONS].T for silo in silos}
    total = (singular[:MAX_DIRECTIONS].square().sum() / len(every)).clamp(min=1e-12)
    return {a: {b: float(frechet(seen[a], seen[b]) / total) if a != b else 0.0 for b in silos} for a in silos}


def frechet(x: Tensor, y: Tensor) -> Tensor:
    """The squared distance of the Gaussians that have the means and variances of two sets of points.

    References:
        The Frechet distance between multivariate normal distributions, Dowson, Landau, 1982, doi
            10.1016/0047-259X(82)90077-X
    """
    apart = x.mean(0) - y.mean(0)
    a, b = (torch.atleast_2d(points.T.cov(correction=0)) for points in (x, y))
    root = _root(a)
    distance: Tensor = apart @ apart + a.trace() + b.trace() - 2 * _root(root @ b @ root).trace()
    return distance.clamp(min=0)


def shares(apart: Mapping[str, float], temperature: float) -> dict[str, float]:
    """What each counts for one: exp(-d / temperature), as a share of all."""
    each = (-torch.tensor(list(apart.values()), dtype=torch.float64) / temperature).softmax(0).tolist()
    return dict(zip(apart, each, strict=True))


def _root(matrix: Tensor) -> Tensor:
    values, directions = torch.linalg.eigh((matrix + matrix.T) / 2)
    root: Tensor = directions * values.clamp(min=0).sqrt() @ directions.T
    return root
