"""Sampling: denoising from one timestep to another."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from manyhands.diffusion.objective import Diffusion, NoisePredictor
from manyhands.diffusion.schedule import Schedule
from manyhands.diffusion.solvers import DenoisingFunction, denoise, dpm_solver, heun
from manyhands.spec import Float, Int, Spec

SECOND_ORDER = {"heun": heun, "dpm++": dpm_solver}
"""The samplers without new noise whose error falls with the square of the number of steps."""


class Sampling(Spec):
    """How images are sampled from a trained denoiser.

    References:
        Denoising Diffusion Implicit Models, Song, Meng, Ermon, 2021, arXiv 2010.02502
        Classifier-Free Diffusion Guidance, Ho, Salimans, 2022, arXiv 2207.12598
    """

    sampler: Literal["ddim", "ddpm", "euler", "heun", "dpm++"] = Field(
        default="ddim",
        description=(
            "The sampler: without new noise (ddim; euler is its name for a flow), with the noise of the posterior "
            "(ddpm), or of second order: heun, which runs the network twice a step, and dpm++ (DPM-Solver++(2M)), "
            "which does not."
        ),
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
        if self.sampler in SECOND_ORDER:
            return SECOND_ORDER[self.sampler](denoiser, x, schedule, at, self.clip)
        return denoise(denoiser, x, schedule, at, rng, eta=float(self.sampler == "ddpm"), clip=self.clip)

    def cited_parts(self) -> list[object]:
        """Return the parts whose papers are cited, with the sampler where that has one of its own."""
        return [*super().cited_parts(), *([SECOND_ORDER[self.sampler]] if self.sampler in SECOND_ORDER else [])]

    def passes(self, steps: int) -> int:
        """Return how many passes of the network so many steps take."""
        return max(2 * steps - 1, 0) if self.sampler == "heun" else steps

    def between(self, schedule: Schedule, t_from: int, t_to: int) -> list[int]:
        """Return ``t_from``, ``t_to`` and the timesteps of the whole schedule between them, falling."""
        return [t_from, *(t for t in timesteps(schedule.steps, 0, self.steps) if t_to < t < t_from), t_to]


def timesteps(t_from: int, t_to: int, steps: int) -> list[int]:
    """Return at most ``steps`` + 1 falling timesteps, evenly spread from ``t_from`` to ``t_to``, both included."""
    if not 0 <= t_to <= t_from:
        raise ValueError(f"an interval falls from t_from to t_to >= 0, not from {t_from} to {t_to}")
    spread = torch.linspace(t_from, t_to, steps + 1, dtype=torch.float64).round().long()
    return sorted(set(spread.tolist()), reverse=True)


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
