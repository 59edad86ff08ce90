"""Sampling: denoising from one timestep to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from manyhands.diffusion.objective import Diffusion, NoisePredictor
from manyhands.diffusion.schedule import Schedule
from manyhands.spec import Float, Int, Spec

DenoisingFunction = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(x_t, t) -> estimates of the clean images and of the noise, all of shape (B, C, H, W)."""


class Sampling(Spec):
    """How images are sampled from a trained denoiser.

    References:
        Denoising Diffusion Implicit Models, Song, Meng, Ermon, 2021, arXiv 2010.02502
        Classifier-Free Diffusion Guidance, Ho, Salimans, 2022, arXiv 2207.12598
    """

    sampler: Literal["ddim", "ddpm"] = Field(
        default="ddim",
        description="The sampler: without new noise (ddim), or with the noise of the posterior (ddpm).",
    )
    steps: Int = Field(
        default=50, ge=1, le=100_000, description="The number of denoising steps over the whole schedule."
    )
    guidance: Float = Field(
        default=1.0,
        ge=0,
        le=100,
        description=(
            "The scale of classifier-free guidance: 1 uses the conditional output alone, 0 the unconditional one, more "
            "than 1 strengthens the class."
        ),
    )
    clip: Float | None = Field(
        default=1.0,
        gt=0,
        description="The bound of the estimated clean image at each step; None for no bound, as for latents.",
    )

    def denoise(
        self,
        denoiser: DenoisingFunction,
        x: Tensor,
        schedule: Schedule,
        t_from: int,
        t_to: int,
        rng: torch.Generator,
        steps: int | None = None,
    ) -> Tensor:
        """Denoise x from timestep ``t_from`` to ``t_to``.

        Args:
            denoiser: Estimates the clean images and the noise.
            x: Noised images, (B, C, H, W).
            schedule: The noise schedule.
            t_from: The timestep of x.
            t_to: The timestep of the result; 0 for clean images.
            rng: The random numbers of new noise.
            steps: The number of steps; None for the steps of the whole schedule that are in between.
        """
        at = self.between(schedule, t_from, t_to) if steps is None else timesteps(t_from, t_to, steps)
        eta = 0.0 if self.sampler == "ddim" else 1.0
        return denoise(denoiser, x, schedule, at, rng, eta=eta, clip=self.clip)

    def between(self, schedule: Schedule, t_from: int, t_to: int) -> list[int]:
        """Return ``t_from``, ``t_to`` and the timesteps of the whole schedule between them, falling."""
        return [t_from, *(t for t in timesteps(schedule.steps, 0, self.steps) if t_to < t < t_from), t_to]


def timesteps(t_from: int, t_to: int, steps: int) -> list[int]:
    """Return at most ``steps`` + 1 falling timesteps, evenly spread from ``t_from`` to ``t_to``, both included."""
    if not 0 <= t_to <= t_from:
        raise ValueError(f"an interval falls from t_from to t_to >= 0, not from {t_from} to {t_to}")
    spread = torch.linspace(t_from, t_to, steps + 1, dtype=torch.float64).round().long()
    return sorted(set(spread.tolist()), reverse=True)


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
    """Denoise x along falling timesteps, by eq. 12 of Song et al.

    Args:
        denoiser: Estimates the clean images and the noise.
        x: Noised images, (B, C, H, W).
        schedule: The noise schedule.
        at: The timesteps, falling, from that of x to that of the result.
        rng: The random numbers of new noise.
        eta: The share of new noise: 0 is DDIM, 1 the posterior of DDPM.
        clip: The bound of the estimated clean images; None for no bound.
    """
    alpha_bar = schedule.alpha_bar().tolist()
    for t, s in pairwise(at):
        a_t, a_s = alpha_bar[t], alpha_bar[s]
        x_0, eps = denoiser(x, t)
        if clip is not None:
            x_0 = x_0.clamp(-clip, clip)
            eps = (x - a_t**0.5 * x_0) / (1 - a_t) ** 0.5
        fresh = eta * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)) ** 0.5
        x = a_s**0.5 * x_0 + max(1 - a_s - fresh**2, 0.0) ** 0.5 * eps
        if fresh > 0:
            x = x + fresh * torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
    return x


def guided(
    network: NoisePredictor, diffusion: Diffusion, labels: Tensor | None, no_label: int, scale: float
) -> DenoisingFunction:
    """Make a denoiser of a network, by classifier-free guidance.

    Args:
        network: The network.
        diffusion: The objective that it was trained with.
        labels: The class numbers, (B,), or None for an unconditional denoiser.
        no_label: The class number that means no label.
        scale: How far the output goes from the unconditional (0) to the conditional output (1) and beyond.
    """

    def denoise(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        t_all = torch.full((len(x),), t, device=x.device)
        out = _guided_output(network, x, t_all, labels, no_label, scale)
        return diffusion.estimates(out, x, *diffusion.schedule.levels(t_all, x))

    return denoise


def _guided_output(
    network: NoisePredictor, x: Tensor, t: Tensor, labels: Tensor | None, no_label: int, scale: float
) -> Tensor:
    if labels is None or scale == 1:
        return network(x, t, labels)
    no_labels = torch.full_like(labels, no_label)
    if scale == 0:
        return network(x, t, no_labels)
    both = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, no_labels]))
    conditional, unconditional = both.chunk(2)
    return torch.lerp(unconditional, conditional, scale)
