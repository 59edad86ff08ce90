"""What a denoiser learns: the noise, or the velocity, of a noised image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from manyhands.diffusion.schedule import Schedule
from manyhands.diffusion.squeeze import squeezed
from manyhands.spec import Float, Int, Spec

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Diffusion(Spec):
    """The objective of a denoiser: its chain, its target and the weights of its steps.

    ``error`` is squared, or absolute as in the latent models of Rombach et al. ``min_snr`` is the gamma of min-SNR
    weighting, None for equal weights; a huge one cuts nothing, and weighs v as the noise's own error, by
    SNR / (1 + SNR). ``times`` draws the steps of a batch each for itself, or evenly spread by a scrambled Sobol
    sequence, which makes the loss vary less. ``label_dropout`` is the share of labels that training hides, so that one
    network learns with and without them, as classifier-free guidance needs. ``upto`` is the last step that is learnt,
    None for the whole chain, 0 for nothing at all. ``norm`` is what images are squeezed into before they are noised;
    drawn ones are stretched back.

    References:
        Progressive Distillation for Fast Sampling of Diffusion Models, Salimans, Ho, 2022, arXiv 2202.00512
        Efficient Diffusion Training via Min-SNR Weighting Strategy, Hang et al., 2023, arXiv 2303.09556
        Classifier-Free Diffusion Guidance, Ho, Salimans, 2022, arXiv 2207.12598
    """

    schedule: Schedule = Schedule()
    target: Literal["eps", "v"] = "v"
    min_snr: Float | None = Field(default=None, gt=0)
    error: Literal["squared", "absolute"] = "squared"
    times: Literal["uniform", "sobol"] = "uniform"
    label_dropout: Float = Field(default=0.1, ge=0, le=1)
    upto: Int | None = Field(default=None, ge=0)
    norm: Float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _in_the_chain(self) -> Self:
        if (self.upto or 0) > self.schedule.steps:
            raise ValueError(f"upto is {self.upto}, the chain has {self.schedule.steps} steps")
        return self

    def loss(
        self,
        network: Network,
        x_0: Tensor,
        labels: Tensor | None,
        no_label: int,
        rng: torch.Generator,
    ) -> Tensor:
        """The weighted error of the network on a batch, at random steps with random noise."""
        x_0, t = squeezed(x_0, self.norm), self.steps(len(x_0), rng)
        eps = torch.randn(x_0.shape, generator=rng, device=x_0.device)
        labels = self.hidden(labels, no_label, rng)
        alpha, sigma = self.schedule.levels(t, x_0)
        wanted = eps if self.target == "eps" else v_of(x_0, eps, alpha, sigma)
        error = network(noised(x_0, eps, alpha, sigma), t, labels) - wanted
        size = error.square() if self.error == "squared" else error.abs()
        return (self.weights(t, x_0.device) * size.flatten(1).mean(1)).mean()

    def hidden(self, labels: Tensor | None, no_label: int, rng: torch.Generator) -> Tensor | None:
        """The labels, a share of them hidden."""
        if labels is None:
            return None
        hide = torch.rand(len(labels), generator=rng, device=labels.device) < self.label_dropout
        return torch.where(hide, no_label, labels)

    def steps(self, count: int, rng: torch.Generator, above: int | Tensor = 0) -> Tensor:
        """Steps of the chain to train on, above < t <= upto, on the device of the random numbers."""
        upto = self.schedule.steps if self.upto is None else self.upto
        if self.times == "uniform" and isinstance(above, int):
            return torch.randint(above + 1, upto + 1, (count,), generator=rng, device=rng.device)
        return (above + 1 + (self._spread(count, rng) * (upto - above)).long()).clamp(max=upto)

    def _spread(self, count: int, rng: torch.Generator) -> Tensor:
        """Numbers from 0 to 1, each for itself or evenly spread."""
        if self.times == "uniform":
            return torch.rand(count, generator=rng, device=rng.device)
        seed = int(torch.randint(2**31, (), generator=rng, device=rng.device))
        return torch.quasirandom.SobolEngine(1, scramble=True, seed=seed).draw(count).flatten().to(rng.device)

    def weights(self, t: Tensor, device: torch.device) -> Tensor:
        """The weight of each step's error: min(SNR, gamma) / SNR for eps, / (SNR + 1) for v."""
        if self.min_snr is None:
            return torch.ones(len(t), device=device)
        snr = self.schedule.snr().float().to(device)[t]
        return snr.clamp(max=self.min_snr) / (snr if self.target == "eps" else snr + 1)

    def estimates(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The clean image and the noise that a network's output stands for."""
        if self.target == "eps":
            return x_0_of_eps(x_t, out, alpha, sigma), out
        return x_0_of_v(x_t, out, alpha, sigma), eps_of_v(x_t, out, alpha, sigma)


def noised(x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_t = alpha x_0 + sigma eps."""
    return alpha * x_0 + sigma * eps


def v_of(x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """V = alpha eps - sigma x_0."""
    return alpha * eps - sigma * x_0


def x_0_of_v(x_t: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_0 = alpha x_t - sigma v."""
    return alpha * x_t - sigma * v


def eps_of_v(x_t: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Eps = sigma x_t + alpha v."""
    return sigma * x_t + alpha * v


def x_0_of_eps(x_t: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_0 = (x_t - sigma eps) / alpha."""
    return (x_t - sigma * eps) / alpha
