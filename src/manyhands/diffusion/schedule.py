"""Noise schedules: how much of an image is left at each timestep."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from manyhands.spec import Float, Int, Spec
from manyhands.tensors import per_image


class Schedule(Spec):
    """A Gaussian path with T = ``steps`` timesteps: x_t = alpha_t x_0 + sigma_t eps.

    Timestep 0 is the clean image (alpha_0 = 1, sigma_0 = 0), timestep T the noisiest. Schedules of betas have alpha_t^2
    = alpha_bar_t and sigma_t^2 = 1 - alpha_bar_t. The linear path of ``flow`` has alpha_t = 1 - t / T and sigma_t =
    t / T, so that timestep T is noise alone.

    References:
        Denoising Diffusion Probabilistic Models, Ho, Jain, Abbeel, 2020, arXiv 2006.11239
        Improved Denoising Diffusion Probabilistic Models, Nichol, Dhariwal, 2021, arXiv 2102.09672
    """

    kind: Literal["cosine", "linear", "scaled-linear", "flow"] = Field(
        default="cosine",
        description=(
            "The shape of the schedule: betas of a cosine curve, betas that rise linearly, or the squares of numbers "
            "that rise linearly (scaled-linear); or the straight line from the image to the noise (flow), which "
            "target = 'flow' sets."
        ),
    )
    steps: Int = Field(default=1000, ge=2, le=100_000, description="The number of timesteps T.")
    beta_start: Float = Field(
        default=1e-4, gt=0, lt=1, description="The first beta of a linear or scaled-linear schedule."
    )
    beta_end: Float = Field(
        default=0.02, gt=0, lt=1, description="The last beta of a linear or scaled-linear schedule."
    )

    def alpha_bar(self) -> Tensor:
        """Return the signal power alpha_t^2 at the timesteps 0 to T, (T + 1,) in float64."""
        return _powers(self)[0]

    def alpha(self) -> Tensor:
        """Return what the image is multiplied by at the timesteps 0 to T, (T + 1,) in float64."""
        return _amplitudes(self)[0]

    def sigma(self) -> Tensor:
        """Return what the noise is multiplied by at the timesteps 0 to T, (T + 1,) in float64."""
        return _amplitudes(self)[1]

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t and sigma_t, each (B, 1, 1, 1).

        Args:
            t: The timesteps, (B,).
            like: A batch of the device, type and number of dimensions that the result is to multiply, (B, C, H, W).
        """
        alpha, sigma = _levels(self, like.device, like.dtype)
        return per_image(alpha[t], like), per_image(sigma[t], like)

    def snr(self) -> Tensor:
        """Return signal power over noise power at the timesteps 0 to T, (T + 1,); infinite at 0."""
        signal, noise = _powers(self)
        return signal / noise


@cache
def _levels(schedule: Schedule, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    alpha, sigma = _amplitudes(schedule)
    return alpha.to(device, dtype), sigma.to(device, dtype)


@cache
def _amplitudes(schedule: Schedule) -> tuple[Tensor, Tensor]:
    signal, noise = _powers(schedule)
    return signal.sqrt(), noise.sqrt()


@cache
def _powers(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Return alpha_t^2 and sigma_t^2."""
    if schedule.kind == "flow":
        sigma = torch.arange(schedule.steps + 1, dtype=torch.float64) / schedule.steps
        return (1 - sigma).square(), sigma.square()
    betas = _cosine(schedule.steps) if schedule.kind == "cosine" else _linear(schedule)
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)])
    return alpha_bar, 1 - alpha_bar


def _linear(schedule: Schedule) -> Tensor:
    power = 2 if schedule.kind == "scaled-linear" else 1
    ends = schedule.beta_start ** (1 / power), schedule.beta_end ** (1 / power)
    return torch.linspace(*ends, schedule.steps, dtype=torch.float64) ** power


def _cosine(steps: int) -> Tensor:
    """Eq. 17 of Nichol and Dhariwal; a single timestep removes at most 0.999 of the signal power."""
    grid = torch.arange(steps + 1, dtype=torch.float64) / steps
    curve = torch.cos((grid + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
