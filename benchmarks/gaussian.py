"""A data set of which everything is known: Gaussian images, and what a network that learns from releases comes to."""

from __future__ import annotations

import torch
from torch import Tensor

from manyhands import Sampling, Schedule
from manyhands.diffusion.bridge import Mode, bridge, target
from manyhands.diffusion.objective import Diffusion, noised, x_0_of_eps
from manyhands.diffusion.sample import Denoiser
from manyhands.methods.collafuse import CollaFuse

SHAPE = (1, 2, 2)
PAIRS = 100_000
MODES: tuple[Mode, ...] = ("exact", "nested", "authors")


def errors(mode: Mode, share: float, steps: int = 200, learnt: bool = True) -> dict[str, float]:
    """How far mean and covariance are from theory at the hand-over and at 0, against the size of the covariance's root.

    The server's denoiser is the best affine one on pairs that the method's own code makes of releases (or, not
    ``learnt``, the expectation that these pairs have); the silo's is the expectation of the noise in its own images.
    """
    method = CollaFuse.model_validate(
        {
            "model": {"size": 4, "channels": 1, "classes": 0},
            "training": {"steps": 1},
            "rounds": 1,
            "mode": mode,
            "cut": share,
        }
    )
    schedule, cut = method.diffusion.schedule, method.step_of("silo")
    mean, root = _data()
    sampling = Sampling(steps=steps, clip=None)
    server = _server(mode, schedule, cut, mean, root, learnt=learnt)
    silo = _analytic(schedule, mean, root)
    rng = torch.Generator().manual_seed(0)

    def down(x: Tensor) -> tuple[Tensor, Tensor]:
        handed = sampling.walk(server, x, schedule, schedule.steps, method.asks(cut), rng)
        return handed, sampling.walk(silo, handed, schedule, method.enters(cut), 0, rng, method.finishes(cut, sampling))

    alpha_bar = float(schedule.alpha_bar()[cut])
    covariance = root @ root.T
    noisy = alpha_bar * covariance + (1 - alpha_bar) * torch.eye(len(mean), dtype=torch.float64)
    at_cut, at_0 = (_moments(down, which) for which in (0, 1))
    return {
        "hand-over": _error(*at_cut, alpha_bar**0.5 * mean, noisy),
        "end": _error(*at_0, mean, covariance),
    }


def _data() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    root = torch.randn(4, 4, generator=rng, dtype=torch.float64) * 0.35
    return torch.tensor([0.3, -0.2, 0.5, 0.0], dtype=torch.float64), root


def _server(mode: Mode, schedule: Schedule, cut: int, mean: Tensor, root: Tensor, *, learnt: bool) -> Denoiser:
    """The denoiser that the method's pairs lead to."""
    diffusion, known = Diffusion(schedule=schedule, target="eps"), {}
    alpha, sigma = (float(x) ** 0.5 for x in (schedule.alpha_bar()[cut], 1 - schedule.alpha_bar()[cut]))
    spread = alpha**2 * root @ root.T + sigma**2 * torch.eye(4, dtype=torch.float64)

    def fitted(t: int) -> tuple[Tensor, Tensor]:
        """Weights and bias of the best affine guess of the target."""
        rng, at = torch.Generator().manual_seed(t), torch.full((1,), t)
        count = PAIRS if learnt else 1
        x_0 = mean + torch.randn(count, 4, generator=rng, dtype=torch.float64) @ root.T
        x_cut = noised(x_0, torch.randn(x_0.shape, generator=rng, dtype=torch.float64), alpha, sigma)
        eps = torch.randn(x_0.shape, generator=rng, dtype=torch.float64)
        r = bridge(schedule, at, torch.full((1,), cut), x_cut, mode)
        wanted = target(diffusion, at, x_cut, eps, *r)
        if not learnt:
            a, s, k = float(r[0]), float(r[1]), float(schedule.levels(at, x_cut)[1] / r[1])
            weights = k * s * torch.linalg.inv(a**2 * spread + s**2 * torch.eye(4, dtype=torch.float64))
            return weights, -weights @ (a * alpha * mean)
        x_t = noised(x_cut, eps, *r)
        solved = torch.linalg.lstsq(torch.cat([x_t, torch.ones(count, 1, dtype=torch.float64)], 1), wanted).solution
        return solved[:-1].T, solved[-1]

    def denoise(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        if t not in known:
            known[t] = fitted(t)
        weights, bias = known[t]
        return _both(schedule, x, x.flatten(1) @ weights.T + bias, t)

    return denoise


def _analytic(schedule: Schedule, mean: Tensor, root: Tensor) -> Denoiser:
    """What is to be expected of the noise in a noised image."""

    def denoise(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        a2 = float(schedule.alpha_bar()[t])
        inverse = torch.linalg.inv(a2 * root @ root.T + (1 - a2) * torch.eye(4, dtype=torch.float64))
        return _both(schedule, x, (1 - a2) ** 0.5 * (x.flatten(1) - a2**0.5 * mean) @ inverse, t)

    return denoise


def _both(schedule: Schedule, x: Tensor, eps: Tensor, t: int) -> tuple[Tensor, Tensor]:
    eps = eps.reshape(x.shape)
    return x_0_of_eps(x, eps, *schedule.levels(torch.tensor([t]), x)), eps


def _moments(down: object, which: int) -> tuple[Tensor, Tensor]:
    """Of what comes of standard noise by a walk without new noise: all of it is affine, so five points tell it all."""
    points = torch.cat([torch.zeros(1, 4), torch.eye(4)]).double().reshape(5, *SHAPE)
    ends = down(points)[which].reshape(5, 4)  # type: ignore[operator]
    moved = (ends[1:] - ends[0]).T
    return ends[0], moved @ moved.T


def _error(mean: Tensor, covariance: Tensor, true_mean: Tensor, true: Tensor) -> float:
    off = float((mean - true_mean).norm() / true.trace().sqrt())
    return max(off, float((covariance - true).norm() / true.norm()))
