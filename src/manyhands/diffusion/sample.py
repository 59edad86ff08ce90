"""Walking down the chain, over any interval of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from manyhands.diffusion.objective import Diffusion, Network
from manyhands.diffusion.schedule import Schedule
from manyhands.spec import Float, Int, Spec

Denoiser = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(x_t, t) -> estimates of the clean image and of the noise."""


class Sampling(Spec):
    """How images are drawn from a trained denoiser.

    ``ddim`` walks without new noise, ``ddpm`` with all the noise of the chain's posterior. ``clip`` bounds the
    estimate of the clean image. ``guidance`` 1 asks the conditional network alone, 0 the unconditional one.

    References:
        Denoising Diffusion Implicit Models, Song, Meng, Ermon, 2021, arXiv 2010.02502
        Classifier-Free Diffusion Guidance, Ho, Salimans, 2022, arXiv 2207.12598
    """

    sampler: Literal["ddim", "ddpm"] = "ddim"
    steps: Int = Field(default=50, ge=1, le=100_000)
    guidance: Float = Field(default=1.0, ge=0, le=100)
    clip: Float | None = Field(default=1.0, gt=0)

    def denoise(
        self,
        denoiser: Denoiser,
        x: Tensor,
        schedule: Schedule,
        t_from: int,
        t_to: int,
        rng: torch.Generator,
        steps: int | None = None,
    ) -> Tensor:
        """Take x from noise level ``t_from`` to ``t_to``, in so many steps, or by those of the whole chain between."""
        at = self.between(schedule, t_from, t_to) if steps is None else timesteps(t_from, t_to, steps)
        eta = 0.0 if self.sampler == "ddim" else 1.0
        return denoise(denoiser, x, schedule, at, rng, eta=eta, clip=self.clip)

    def between(self, schedule: Schedule, t_from: int, t_to: int) -> list[int]:
        """The two ends, and the steps of the whole chain that lie between."""
        return [t_from, *(t for t in timesteps(schedule.steps, 0, self.steps) if t_to < t < t_from), t_to]


def timesteps(t_from: int, t_to: int, steps: int) -> list[int]:
    """At most ``steps`` + 1 falling steps of the chain, evenly spread, both ends among them."""
    if not 0 <= t_to <= t_from:
        raise ValueError(f"an interval goes down from t_from to t_to >= 0, not from {t_from} to {t_to}")
    spread = torch.linspace(t_from, t_to, steps + 1, dtype=torch.float64).round().long()
    return sorted(set(spread.tolist()), reverse=True)


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    x: Tensor,
    schedule: Schedule,
    at: Sequence[int],
    rng: torch.Generator,
    *,
    eta: float = 0.0,
    clip: float | None = None,
) -> Tensor:
    """Take x down the given steps, eq. 12 of Song et al.; eta 0 is DDIM, eta 1 the posterior of DDPM."""
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


def guided(network: Network, diffusion: Diffusion, labels: Tensor | None, no_label: int, scale: float) -> Denoiser:
    """A network as a denoiser, pushed ``scale`` times from the unconditional towards the conditional output."""

    def denoise(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        t_all = torch.full((len(x),), t, device=x.device)
        out = _guided_output(network, x, t_all, labels, no_label, scale)
        return diffusion.estimates(out, x, *diffusion.schedule.levels(t_all, x))

    return denoise


def _guided_output(
    network: Network, x: Tensor, t: Tensor, labels: Tensor | None, no_label: int, scale: float
) -> Tensor:
    if labels is None or scale == 1:
        return network(x, t, labels)
    nobody = torch.full_like(labels, no_label)
    if scale == 0:
        return network(x, t, nobody)
    both = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, nobody]))
    with_label, without = both.chunk(2)
    return torch.lerp(without, with_label, scale)
