"""Identifies the image of a release among candidates, and links two releases of the same image."""

from __future__ import annotations

import torch
from torch import Tensor

from manyhands.audit.attacks.statistics import Interval, auc, bootstrap

REACH, POINTS = 6.0, 41
LOOKED_AT = 200
OTHERS = 5


def recognised(x_t: Tensor, candidates: Tensor, alpha: float) -> Tensor:
    """Whether the candidate nearest to x_t / alpha is the true one (N,), for releases in the order of the candidates.

    Under Gaussian noise, and if all candidates are equally likely beforehand, the nearest is the most likely one: no
    attack is right more often.

    References:
        An Introduction to Signal Detection and Estimation, Poor, 1994, Springer
    """
    nearest = torch.cdist((x_t / alpha).flatten(1).double(), candidates.flatten(1).double()).argmin(1)
    return nearest == torch.arange(len(candidates), device=nearest.device)


def equidistant(candidates: Tensor, sigma: float) -> float:
    """The chance that the nearest candidate is the true one, under noise with standard deviation sigma on the image.

    P_i = integral of phi(z) prod_j Phi(z + d_ij / (sqrt(2) sigma)) dz. This is exact if the differences to the other
    candidates meet at 60 degrees, as they do where all distances are equal; for real images it is too high, by up to a
    third. It is the mean over about 200 candidates.

    References:
        Digital Communications, Proakis, Salehi, 2008, McGraw-Hill (section 4.4: orthogonal signals)
    """
    flat = candidates.flatten(1).double()
    z = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
    weights = torch.softmax(-z * z / 2, 0)
    looked_at = torch.arange(0, len(flat), max(1, len(flat) // LOOKED_AT))
    distances = torch.cdist(flat[looked_at], flat) / (2**0.5 * sigma)
    distances[torch.arange(len(looked_at)), looked_at] = float("inf")
    chances = [(weights * torch.special.log_ndtr(z[:, None] + row).sum(1).exp()).sum() for row in distances]
    return float(torch.stack(chances).mean())


def limit(candidates: Tensor, sigma: float) -> float:
    """The upper bound for every attack on the mean chance of naming the true candidate.

    A rule that names candidate i with chance q_i on noise about the centre of them all names it with chance at most
    Phi(Phi^-1(q_i) + mu_i) on the release of i, mu_i its distance to the centre over sigma (Neyman and Pearson). The
    q_i add up to one; the sum of the bounds is greatest where all have one slope.

    References:
        Channel Coding Rate in the Finite Blocklength Regime, Polyanskiy, Poor, Verdu, 2010,
            IEEE Transactions on Information Theory 56 (the meta-converse)
        Gaussian Differential Privacy, Dong, Roth, Su, 2019, arXiv 1905.02383
    """
    flat = candidates.flatten(1).double()
    mu = ((flat - flat.mean(0)).norm(dim=1) / sigma).clamp(min=1e-9)
    low, high = -1e3 * float(mu.max()) ** 2 - 1e3, 1e3 * float(mu.max()) ** 2 + 1e3
    for _ in range(200):
        slope = (low + high) / 2
        more = float(torch.special.ndtr(-slope / mu - mu / 2).sum()) > 1
        low, high = (slope, high) if more else (low, slope)
    return float(torch.special.ndtr(mu / 2 - high / mu).mean())


def linkability(first: Tensor, second: Tensor, rng: torch.Generator) -> Interval:
    """The AUC with which correlation tells two releases of one image from those of two; both in the same order."""
    a, b = (_centred(copies) for copies in (first, second))
    same = (a * b).sum(1)
    different = torch.cat([(a * b.roll(turn, 0)).sum(1) for turn in range(1, OTHERS + 1)])
    return bootstrap(auc, same, different, rng=rng)


def _centred(copies: Tensor) -> Tensor:
    flat = copies.flatten(1).double()
    return torch.nn.functional.normalize(flat - flat.mean(0), dim=1)
