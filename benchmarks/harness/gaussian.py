"""A data set of which everything is known: Gaussian images, and what a network that learns from releases comes to."""

from __future__ import annotations

import torch
from torch import Tensor

from manyhands import Sampling, Schedule
from manyhands.diffusion.bridge import Mode, bridge, target
from manyhands.diffusion.norm_bound import squeezed, stretched
from manyhands.diffusion.objective import Diffusion, noised, x_0_of_eps
from manyhands.diffusion.release_privacy import box_norm
from manyhands.diffusion.solvers import DenoisingFunction
from manyhands.methods.collafuse.method import CollaFuse

SHAPE = (1, 2, 2)
PAIRS = 100_000
Errors = dict[str, float]
MODES: tuple[Mode, ...] = ("exact", "nested", "authors")


def errors(mode: Mode, share: float, steps: int = 200, learnt: bool = True) -> dict[str, float]:
    """How far mean and covariance are from theory at the hand-over and at 0, against the size of the covariance's root.

    The server's denoiser is the best affine one on pairs that the method's own code makes of releases (or, not
    ``learnt``, the expectation that these pairs have); the silo's is the expectation of the noise in its own images.
    """
    method = _method(mode, share)
    schedule, cut = method.diffusion.schedule, method.step_of("silo")
    mean, root = _data()
    sampling = Sampling(steps=steps, clip=None)
    server = _server(mode, schedule, cut, mean, root, learnt=learnt)
    silo = _analytic(schedule, mean, root)
    rng = torch.Generator().manual_seed(0)

    def down(x: Tensor) -> tuple[Tensor, Tensor]:
        handed = sampling.denoise(server, x, schedule, schedule.steps, method.server_stop(cut), rng)
        return handed, sampling.denoise(
            silo,
            handed,
            schedule,
            t_from=method.silo_start(cut),
            t_to=0,
            rng=rng,
            steps=method.steps_below_cut(cut, sampling),
        )

    alpha_bar = float(schedule.alpha_bar()[cut])
    covariance = root @ root.T
    noisy = alpha_bar * covariance + (1 - alpha_bar) * torch.eye(len(mean), dtype=torch.float64)
    at_cut, at_0 = (_moments(down, which) for which in (0, 1))
    return {
        "hand-over": _error(*at_cut, alpha_bar**0.5 * mean, noisy),
        "end": _error(*at_0, mean, covariance),
    }


def _method(mode: Mode, share: float, norm: float | None = None) -> CollaFuse:
    model, training = {"size": 4, "channels": 1, "classes": 0}, {"steps": 1}
    fields = {"model": model, "training": training, "rounds": 1, "mode": mode, "cut": share, "norm": norm}
    return CollaFuse.model_validate(fields)


def _data() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    root = torch.randn(4, 4, generator=rng, dtype=torch.float64) * 0.35
    return torch.tensor([0.3, -0.2, 0.5, 0.0], dtype=torch.float64), root


def _server(mode: Mode, schedule: Schedule, cut: int, mean: Tensor, root: Tensor, *, learnt: bool) -> DenoisingFunction:
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
        start = torch.full((1,), cut if mode == "exact" else 0)
        r = bridge(schedule, at, start, x_cut)
        wanted = target(diffusion, at, start, x_cut, eps=eps, alpha_r=r[0], sigma_r=r[1])
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


def _analytic(schedule: Schedule, mean: Tensor, root: Tensor) -> DenoisingFunction:
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


def norm_errors(norm: float | None, share: float, *, steps: int = 400, apart: bool = False) -> Errors:
    """The same with a norm: of 48 points of the Gaussian, released as the method does it, each side learning its part.

    Squeezed images are not Gaussian; but of so many points the best denoiser is known as well, and both sides have it.
    At 0 drawn points are stretched back. ``squeezed`` is the share of points that the norm changes. Where the sides are
    ``apart``, the silo learns its points as they are: what would be wrong with that.
    """
    method = _method("exact", share, norm)
    schedule, cut = method.diffusion.schedule, method.step_of("silo")
    mean, root = _data()
    drawn = mean + _normal(100) @ root.T
    images = drawn[drawn.norm(dim=1) < box_norm(4)][:48].reshape(-1, *SHAPE)
    released = squeezed(images, method.norm)
    learnt = squeezed(images, None if apart else method.local_method(cut).diffusion.norm)
    sampling, rng = Sampling(steps=steps, clip=None), torch.Generator()
    x = _normal(1024).reshape(-1, *SHAPE)
    handed = sampling.denoise(_bridged(schedule, cut, released), x, schedule, schedule.steps, cut, rng)
    ends = sampling.denoise(_of_points(schedule, learnt), handed, schedule, cut, 0, rng)
    ends = ends if apart else stretched(ends, method.norm_at(cut))
    alpha_bar, unit = float(schedule.alpha_bar()[cut]), torch.eye(4, dtype=torch.float64)
    mean, covariance = _sample_moments(learnt)
    return {
        "hand-over": _error(
            *_sample_moments(handed), alpha_bar**0.5 * mean, alpha_bar * covariance + (1 - alpha_bar) * unit
        ),
        "end": _error(*_sample_moments(ends), *_sample_moments(images)),
        "squeezed": float((images != released).flatten(1).any(1).double().mean()),
    }


def _normal(count: int) -> Tensor:
    """Evenly spread standard normal numbers, four to a row; each row's opposite is there, too."""
    u = torch.quasirandom.SobolEngine(4, scramble=True, seed=0).draw(count, dtype=torch.float64)
    half = torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9))
    return torch.cat([half, -half])


def _sample_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.flatten(1).mean(0), torch.cov(x.flatten(1).T, correction=0)


def _weights(x: Tensor, points: Tensor, alpha: float, sigma: float) -> Tensor:
    """How likely each x is to be of each of the points."""
    apart = torch.cdist(x.flatten(1), alpha * points.flatten(1)).square()
    return (-apart / (2 * sigma**2)).softmax(1)


def _of_points(schedule: Schedule, points: Tensor) -> DenoisingFunction:
    """What is to be expected of the noise in one of these points, noised."""

    def denoise(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        alpha, sigma = (float(schedule.alpha_bar()[t]) ** 0.5, (1 - float(schedule.alpha_bar()[t])) ** 0.5)
        x_0 = (_weights(x, points, alpha, sigma) @ points.flatten(1)).reshape(x.shape)
        return x_0, (x - alpha * x_0) / sigma

    return denoise


def _bridged(schedule: Schedule, cut: int, points: Tensor) -> DenoisingFunction:
    """What is to be expected of the method's own target, for who has releases of these points."""
    diffusion = Diffusion(schedule=schedule, target="eps")
    a, s = float(schedule.alpha_bar()[cut]) ** 0.5, (1 - float(schedule.alpha_bar()[cut])) ** 0.5

    def denoise(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        at, start = torch.full((1,), t), torch.full((1,), cut)
        alpha_r, sigma_r = bridge(schedule, at, start, x)
        a_r, s_r = float(alpha_r), float(sigma_r)
        spread = a_r**2 * s**2 + s_r**2
        x_0 = (_weights(x, points, a_r * a, spread**0.5) @ points.flatten(1)).reshape(x.shape)
        off = (x - a_r * a * x_0) / spread
        x_cut = a * x_0 + a_r * s**2 * off
        eps = target(diffusion, at, start, x_cut, eps=s_r * off, alpha_r=alpha_r, sigma_r=sigma_r)
        return _both(schedule, x, eps, t)

    return denoise
