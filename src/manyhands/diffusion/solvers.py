"""Solvers: how images are denoised step by step along falling timesteps of any Gaussian path."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from manyhands.diffusion.schedule import Schedule

DenoisingFunction = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(x_t, t) -> estimates of the clean images and of the noise, all of shape (B, C, H, W)."""


@torch.no_grad()
def denoise(
    denoiser: DenoisingFunction,
    x: Tensor,
    schedule: Schedule,
    at: Sequence[int],
    rng: torch.Generator,
    *,
    eta: float = 0.0,
    clip: float | None = None,
) -> Tensor:
    """Denoise x along falling timesteps, by eq. 12 of Song et al.; without new noise, each is a step of Euler's method.

    Args:
        denoiser: Estimates the clean images and the noise.
        x: Noised images, (B, C, H, W).
        schedule: The noise schedule.
        at: The timesteps, falling, from that of x to that of the result.
        rng: The random numbers of new noise.
        eta: The share of new noise: 0 is DDIM, 1 the posterior of DDPM.
        clip: The bound of the estimated clean images; None for no bound.
    """
    alpha, sigma = schedule.alpha().tolist(), schedule.sigma().tolist()
    for t, s in pairwise(at):
        x_0, eps = _estimates(denoiser, x, t, schedule, clip)
        fresh = eta * sigma[s] / sigma[t] * max(sigma[t] ** 2 - (alpha[t] / alpha[s] * sigma[s]) ** 2, 0.0) ** 0.5
        x = alpha[s] * x_0 + max(sigma[s] ** 2 - fresh**2, 0.0) ** 0.5 * eps
        if fresh > 0:
            x = x + fresh * torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
    return x


@torch.no_grad()
def heun(
    denoiser: DenoisingFunction, x: Tensor, schedule: Schedule, at: Sequence[int], clip: float | None = None
) -> Tensor:
    """Denoise x by Heun's method: the means of the estimates at both ends of a step, (x_0) d alpha + (eps) d sigma.

    On the linear path these are the velocity's. The last step is Euler's, because a network is not trained at the
    timestep where its interval ends; the error stays of second order.

    Args:
        denoiser: Estimates the clean images and the noise.
        x: Noised images, (B, C, H, W).
        schedule: The noise schedule.
        at: The timesteps, falling, from that of x to that of the result.
        clip: The bound of the estimated clean images; None for no bound.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022, arXiv 2206.00364
    """
    alpha, sigma = schedule.alpha().tolist(), schedule.sigma().tolist()
    for t, s in pairwise(at):
        x_0, eps = _estimates(denoiser, x, t, schedule, clip)
        predicted: Tensor = alpha[s] * x_0 + sigma[s] * eps
        if s == at[-1]:
            return predicted
        x_0_after, eps_after = _estimates(denoiser, predicted, s, schedule, clip)
        x = x + (alpha[s] - alpha[t]) / 2 * (x_0 + x_0_after) + (sigma[s] - sigma[t]) / 2 * (eps + eps_after)
    return x


@torch.no_grad()
def dpm_solver(
    denoiser: DenoisingFunction, x: Tensor, schedule: Schedule, at: Sequence[int], clip: float | None = None
) -> Tensor:
    """Denoise x by DPM-Solver++(2M): the clean image is extrapolated from two steps, in lambda = log(alpha / sigma).

    The first step, and one down to clean images, are of first order, which is DDIM.

    Args:
        denoiser: Estimates the clean images and the noise.
        x: Noised images, (B, C, H, W).
        schedule: The noise schedule.
        at: The timesteps, falling, from that of x to that of the result.
        clip: The bound of the estimated clean images; None for no bound.

    References:
        DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, Lu et al., 2022,
            arXiv 2211.01095
    """
    alpha, sigma = schedule.alpha().tolist(), schedule.sigma().tolist()
    before: tuple[Tensor, float] | None = None
    for t, s in pairwise(at):
        x_0, _ = _estimates(denoiser, x, t, schedule, clip)
        now, ahead = x_0, _log_ratio(alpha[t], sigma[t])
        if before is not None and sigma[s] > 0:
            step, last_step = _log_ratio(alpha[s], sigma[s]) - ahead, ahead - before[1]
            now = x_0 + step / (2 * last_step) * (x_0 - before[0])
        left = sigma[s] / sigma[t]
        x, before = left * x + (alpha[s] - left * alpha[t]) * now, (x_0, ahead)
    return x


def _log_ratio(alpha: float, sigma: float) -> float:
    return math.log(alpha / sigma) if alpha > 0 else -math.inf


def _estimates(
    denoiser: DenoisingFunction, x: Tensor, t: int, schedule: Schedule, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Return the estimates at timestep t; a clean image that is clipped has the noise that goes with it."""
    x_0, eps = denoiser(x, t)
    if clip is None:
        return x_0, eps
    x_0 = x_0.clamp(-clip, clip)
    return x_0, (x - float(schedule.alpha()[t]) * x_0) / float(schedule.sigma()[t])
