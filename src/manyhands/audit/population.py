"""How often the nearest candidate is the true one, foretold from public images alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import ndtr

from manyhands.diffusion.schedule import Schedule

RIDGE = 1e-4
HALVINGS = 40
DRAWS = 8000
AT_ONCE = 1000
SELDOM = 0.01
"""An image that is picked out of all candidates as rarely as that is hidden."""
DOUBT = 1.2
"""By how much more may be picked than is foretold, as far as was seen (benchmarks/collafuse.py)."""


@dataclass(frozen=True)
class Cloud:
    """A Gaussian cloud of images: its share of all, its centre, and the variances along its axes."""

    share: float
    centre: Tensor
    variances: Tensor
    axes: Tensor


def clouds(public: Tensor, labels: Tensor | None) -> list[Cloud]:
    """Public images as a mixture of Gaussian clouds: one for each class, or one for all."""
    flat = public.flatten(1).double()
    groups = [flat] if labels is None else [flat[labels == label] for label in labels.unique()]
    return [_cloud(group, len(group) / len(flat)) for group in groups if len(group) > 2]


def foretold(among: list[Cloud], sigma: float, candidates: int, rng: torch.Generator, draws: int = DRAWS) -> float:
    """The chance that an image is nearer to its release than all other candidates, all of them drawn from the clouds.

    P = E (1 - q)^(m - 1), q the chance that one candidate is nearer: given the release they are independent, so that
    is exact but for q, a saddlepoint approximation, and for what of images is not Gaussian by class. The mean of so
    many draws; never below chance.

    References:
        Saddle Point Approximation for the Distribution of the Sum of Independent Random Variables, Lugannani, Rice,
            1980, Advances in Applied Probability 12
    """
    images = torch.cat([_drawn(cloud, round(cloud.share * draws), rng) for cloud in among])
    noise = sigma * torch.randn(images.shape, generator=rng, dtype=torch.float64)
    nearer = torch.zeros(len(images), dtype=torch.float64)
    for some in torch.arange(len(images)).split(AT_ONCE):
        radius = noise[some].square().sum(1)
        for cloud in among:
            nearer[some] += cloud.share * _within(images[some] + noise[some], radius, cloud)
    chance = ((candidates - 1) * torch.log1p(-nearer.clamp(max=1 - 1e-12))).exp()
    return max(float(chance.mean()), 1 / candidates)


def hidden_from(among: list[Cloud], schedule: Schedule, candidates: int, seed: int, releases: int = 1) -> int | None:
    """The first step at which an image is seldom picked, with a margin for what theory is off by; None without one."""
    low, high = 0, schedule.steps
    while high - low > 1:
        middle = (low + high) // 2
        sigma = (float(schedule.snr()[middle]) * releases) ** -0.5
        told = foretold(among, sigma, candidates, torch.Generator().manual_seed(seed))
        low, high = (low, middle) if told * DOUBT <= SELDOM else (middle, high)
    return None if high == schedule.steps else high


def _drawn(cloud: Cloud, count: int, rng: torch.Generator) -> Tensor:
    along = torch.randn(count, len(cloud.variances), generator=rng, dtype=torch.float64) * cloud.variances.sqrt()
    return cloud.centre + along @ cloud.axes


def _cloud(flat: Tensor, share: float) -> Cloud:
    centre = flat.mean(0)
    _, singular, axes = torch.linalg.svd(flat - centre, full_matrices=False)
    return Cloud(share, centre, singular.square() / (len(flat) - 1) + RIDGE, axes)


def _within(points: Tensor, radius: Tensor, cloud: Cloud) -> Tensor:
    """The chance that a draw lies within the squared radius of each point."""
    lam, offset = cloud.variances, points - cloud.centre
    along = (offset @ cloud.axes.T).square()
    across = (offset.square().sum(1) - along.sum(1)).clamp(min=0)
    theta = _saddle(radius - across, along, lam)
    q = 1 - 2 * theta[:, None] * lam
    log_moment = (theta[:, None] * along / q - q.log() / 2).sum(1) - theta * (radius - across)
    curvature = (2 * lam**2 / q**2 + 4 * along * lam / q**3).sum(1)
    w = theta.sign() * (-2 * log_moment).clamp(min=1e-12).sqrt()
    density = (-w * w / 2).exp() / (2 * torch.pi) ** 0.5
    correction = torch.where(w.abs() < 1e-3, 0.0, density * (1 / w - 1 / (theta * curvature.sqrt())))
    return torch.where(radius <= across, 0.0, (ndtr(w) + correction).clamp(0, 1))


def _saddle(radius: Tensor, along: Tensor, lam: Tensor) -> Tensor:
    """Where the derivative of the cumulants of the squared distance is the squared radius, by halving."""
    low, high = torch.full_like(radius, -40.0), torch.full_like(radius, 40.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        q = 1 - lam / lam.max() * (1 - middle.exp())[:, None]
        small = (lam / q + along / q**2).sum(1) < radius
        high, low = torch.where(small, middle, high), torch.where(small, low, middle)
    return (1 - ((low + high) / 2).exp()) / (2 * lam.max())
