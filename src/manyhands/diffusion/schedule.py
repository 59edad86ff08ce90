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
    """A noise schedule with T = ``steps`` timesteps: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

    Timestep 0 is the clean image (alpha_bar_0 = 1), timestep T the noisiest.

    References:
        Denoising Diffusion Probabilistic Models, Ho, Jain, Abbeel, 2020, arXiv 2006.11239
        Improved Denoising Diffusion Probabilistic Models, Nichol, Dhariwal, 2021, arXiv 2102.09672
    """

    kind: Literal["cosine", "linear", "scaled-linear"] = Field(
        default="cosine",
        description=(
            "The shape of the schedule: betas of a cosine curve, betas that rise linearly, or the squares of numbers "
            "that rise linearly (scaled-linear)."
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
        """Return the share of signal power at the timesteps 0 to T, (T + 1,) in float64."""
        return _alpha_bar(self)

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t = sqrt(alpha_bar_t) and sigma_t = sqrt(1 - alpha_bar_t), each (B, 1, 1, 1).

        Args:
            t: The timesteps, (B,).
            like: A batch of the device, type and number of dimensions that the result is to multiply, (B, C, H, W).
        """
        alpha, sigma = _levels(self, like.device, like.dtype)
        return per_image(alpha[t], like), per_image(sigma[t], like)

    def snr(self) -> Tensor:
        """Return signal power over noise power at the timesteps 0 to T, (T + 1,); infinite at 0."""
        alpha_bar = self.alpha_bar()
        return alpha_bar / (1 - alpha_bar)


@cache
def _levels(schedule: Schedule, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    alpha_bar = schedule.alpha_bar()
    return alpha_bar.sqrt().to(device, dtype), (1 - alpha_bar).sqrt().to(device, dtype)


@cache
def _alpha_bar(schedule: Schedule) -> Tensor:
    betas = _cosine(schedule.steps) if schedule.kind == "cosine" else _linear(schedule)
    alpha_bar = torch.cumprod(1 - betas, 0)
    return torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar])


def _linear(schedule: Schedule) -> Tensor:
    power = 2 if schedule.kind == "scaled-linear" else 1
    ends = schedule.beta_start ** (1 / power), schedule.beta_end ** (1 / power)
    return torch.linspace(*ends, schedule.steps, dtype=torch.float64) ** power


def _cosine(steps: int) -> Tensor:
    """Eq. 17 of Nichol and Dhariwal; a single timestep removes at most 0.999 of the signal power."""
    grid = torch.arange(steps + 1, dtype=torch.float64) / steps
    curve = torch.cos((grid + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
