"""How often the nearest candidate is the true one, predicted from public images alone."""

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
"""An image counts as hidden if it is picked out of all candidates with at most this chance."""
DOUBT = 1.2
"""The largest ratio of picked to predicted images that was measured (benchmarks/collafuse.py)."""


@dataclass(frozen=True)
class Cloud:
    """A Gaussian cloud of images: its share of all images, its centre, and the variances along its axes."""

    share: float
    centre: Tensor
    variances: Tensor
    axes: Tensor


def clouds_of(public: Tensor, labels: Tensor | None) -> list[Cloud]:
    """Fit a mixture of Gaussian clouds to public images (N, C, H, W): one for each class, or one for all."""
    flat = public.flatten(1).double()
    groups = [flat] if labels is None else [flat[labels == label] for label in labels.unique()]
    return [_cloud(group, len(group) / len(flat)) for group in groups if len(group) > 2]


def expected_identification(
    clouds: list[Cloud], sigma: float, candidates: int, rng: torch.Generator, draws: int = DRAWS
) -> float:
    """The chance that an image is nearer to its release than all other candidates, all of them drawn from the clouds.

    P = E (1 - q)^(m - 1), where q is the chance that one candidate is nearer. Given the release, candidates are
    independent; the only errors are the saddlepoint approximation of q, and that images of a class are not exactly
    Gaussian. It is the mean of ``draws`` draws, and never below chance.

    References:
        Saddle Point Approximation for the Distribution of the Sum of Independent Random Variables, Lugannani, Rice,
            1980, Advances in Applied Probability 12
    """
    images = torch.cat([_drawn(cloud, round(cloud.share * draws), rng) for cloud in clouds])
    noise = sigma * torch.randn(images.shape, generator=rng, dtype=torch.float64)
    nearer = torch.zeros(len(images), dtype=torch.float64)
    for part in torch.arange(len(images)).split(AT_ONCE):
        radius = noise[part].square().sum(1)
        for cloud in clouds:
            nearer[part] += cloud.share * _within(images[part] + noise[part], radius, cloud)
    chance = ((candidates - 1) * torch.log1p(-nearer.clamp(max=1 - 1e-12))).exp()
    return max(float(chance.mean()), 1 / candidates)


def first_hidden_step(
    clouds: list[Cloud], schedule: Schedule, candidates: int, seed: int, releases: int = 1
) -> int | None:
    """The first step at which an image is hidden, with a margin for the error of theory; None if there is none."""
    low, high = 0, schedule.steps
    while high - low > 1:
        middle = (low + high) // 2
        sigma = (float(schedule.snr()[middle]) * releases) ** -0.5
        share = expected_identification(clouds, sigma, candidates, torch.Generator().manual_seed(seed))
        low, high = (low, middle) if share * DOUBT <= SELDOM else (middle, high)
    return None if high == schedule.steps else high


def _drawn(cloud: Cloud, count: int, rng: torch.Generator) -> Tensor:
    along = torch.randn(count, len(cloud.variances), generator=rng, dtype=torch.float64) * cloud.variances.sqrt()
    return cloud.centre + along @ cloud.axes


def _cloud(flat: Tensor, share: float) -> Cloud:
    centre = flat.mean(0)
    _, singular, axes = torch.linalg.svd(flat - centre, full_matrices=False)
    return Cloud(share, centre, singular.square() / (len(flat) - 1) + RIDGE, axes)


def _within(points: Tensor, radius: Tensor, cloud: Cloud) -> Tensor:
    """The chance that a draw from the cloud is within the squared radius of each point."""
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
    """Solve for the saddlepoint, at which the derivative of the cumulants is the squared radius, by bisection."""
    low, high = torch.full_like(radius, -40.0), torch.full_like(radius, 40.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        q = 1 - lam / lam.max() * (1 - middle.exp())[:, None]
        small = (lam / q + along / q**2).sum(1) < radius
        high, low = torch.where(small, middle, high), torch.where(small, low, middle)
    return (1 - ((low + high) / 2).exp()) / (2 * lam.max())
