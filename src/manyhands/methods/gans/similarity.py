"""How alike silos are, measured on images from their generators."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MAX_DIRECTIONS = 16
"""The most principal directions in which images are compared."""


def distances(images: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return the distance of each pair of silos: the Frechet distance of Gaussians over the variance of all images.

    The Gaussians are fitted to the images' coordinates in the directions in which all images together vary most. The
    distance is 0 between equal sets, and 4 between two halves of which each repeats a single image.

    Args:
        images: Images of each silo, of shape (B, C, H, W).
    """
    silos = sorted(images)
    flat = {silo: images[silo].flatten(1).double().cpu() for silo in silos}
    together = torch.cat([flat[silo] for silo in silos])
    _, singular, directions = torch.linalg.svd(together - together.mean(0), full_matrices=False)
    points = {silo: flat[silo] @ directions[:MAX_DIRECTIONS].T for silo in silos}
    total = (singular[:MAX_DIRECTIONS].square().sum() / len(together)).clamp(min=1e-12)
    return {a: {b: float(frechet(points[a], points[b]) / total) if a != b else 0.0 for b in silos} for a in silos}


def frechet(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared Frechet distance of Gaussians with the means and covariances of two sets of points.

    Args:
        x: Points of the first set, of shape (N, D).
        y: Points of the second set, of shape (M, D).

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
    """Return the weight of each silo for one of them: exp(-d / temperature) as a share of the total."""
    weights = (-torch.tensor(list(apart.values()), dtype=torch.float64) / temperature).softmax(0).tolist()
    return dict(zip(apart, weights, strict=True))


def _root(matrix: Tensor) -> Tensor:
    values, directions = torch.linalg.eigh((matrix + matrix.T) / 2)
    root: Tensor = directions * values.clamp(min=0).sqrt() @ directions.T
    return root
