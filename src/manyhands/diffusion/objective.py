"""The training objective of a denoiser: it predicts the noise, or a velocity, of a noised image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from manyhands.diffusion.norm_bound import squeezed
from manyhands.diffusion.schedule import Schedule
from manyhands.spec import Float, Int, Spec

NoisePredictor = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_t, t, labels) -> the prediction: (B, C, H, W), (B,) and (B,) or None -> (B, C, H, W)."""


class Diffusion(Spec):
    """The training objective of a denoiser: its noise schedule, its target and the weights of its timesteps.

    References:
        Progressive Distillation for Fast Sampling of Diffusion Models, Salimans, Ho, 2022, arXiv 2202.00512
        Efficient Diffusion Training via Min-SNR Weighting Strategy, Hang et al., 2023, arXiv 2303.09556
        Classifier-Free Diffusion Guidance, Ho, Salimans, 2022, arXiv 2207.12598
    """

    schedule: Schedule = Field(default=Schedule(), description="The noise schedule.")
    target: Literal["eps", "v", "flow"] = Field(
        default="v",
        description=(
            "What the network predicts: the noise (eps), the velocity (v), or the velocity on the straight line from "
            "the image to the noise (flow: flow matching, rectified flow), which has a schedule of its own."
        ),
    )
    min_snr: Float | None = Field(
        default=None,
        gt=0,
        description=(
            "The gamma of min-SNR weighting; None weighs all timesteps equally. A very large gamma caps nothing: it "
            "weighs the error of v by SNR / (1 + SNR), as if it were the error of the noise. For flow, errors count as "
            "those of the clean image do, too."
        ),
    )
    error: Literal["squared", "absolute"] = Field(
        default="squared", description="The error of a prediction: squared, or absolute as in Rombach et al."
    )
    timestep_sampling: Literal["uniform", "sobol"] = Field(
        default="uniform",
        description=(
            "How the timesteps of a batch are sampled: independently (uniform), or spread evenly by a scrambled Sobol "
            "sequence (sobol), which lowers the variance of the loss."
        ),
    )
    label_dropout: Float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="The share of labels that training hides, which classifier-free guidance needs.",
    )
    max_timestep: Int | None = Field(
        default=None, ge=0, description="The last timestep that is trained; None for all timesteps, 0 for none."
    )
    norm: Float | None = Field(
        default=None,
        gt=0,
        description=(
            "The largest norm of an image: larger ones are squeezed into it before noise is added, and stretched back "
            "in samples. None leaves images as they are."
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _path_of_the_target(cls, fields: Any) -> Any:
        """Fill in that the path of flow is the straight line."""
        if not (isinstance(fields, Mapping) and fields.get("target") == "flow"):
            return fields
        schedule = fields.get("schedule", {})
        return {**fields, "schedule": {"kind": "flow", **schedule} if isinstance(schedule, Mapping) else schedule}

    @model_validator(mode="after")
    def _target_fits_the_path(self) -> Self:
        if (self.target == "flow") != (self.schedule.kind == "flow"):
            raise ValueError(
                f"target is {self.target!r}, but schedule.kind is {self.schedule.kind!r}: 'flow' is both a target and "
                "the straight path that it is for; set target = 'flow' and leave schedule.kind out"
            )
        return self

    @model_validator(mode="after")
    def _in_the_schedule(self) -> Self:
        if (self.max_timestep or 0) > self.schedule.steps:
            raise ValueError(f"max_timestep is {self.max_timestep}, but the schedule has {self.schedule.steps} steps")
        return self

    def cited_parts(self) -> list[object]:
        """Return the parts whose papers are cited: those of flows where the target is one."""
        return [*super().cited_parts(), *([flow_of] if self.target == "flow" else [])]

    def loss(
        self,
        network: NoisePredictor,
        x_0: Tensor,
        labels: Tensor | None,
        no_label: int,
        rng: torch.Generator,
    ) -> Tensor:
        """Return the weighted error of the network on a batch, at random timesteps with random noise.

        Args:
            network: The denoiser.
            x_0: Images in [-1, 1], or latents, (B, C, H, W).
            labels: The class numbers, (B,), or None for an unconditional denoiser.
            no_label: The class number that means no label.
            rng: The random numbers of timesteps, noise and hidden labels.
        """
        x_0, t = squeezed(x_0, self.norm), self.steps(len(x_0), rng)
        eps = torch.randn(x_0.shape, generator=rng, device=x_0.device)
        labels = self.hidden(labels, no_label, rng)
        alpha, sigma = self.schedule.levels(t, x_0)
        error = network(noised(x_0, eps, alpha, sigma), t, labels) - self.target_of(x_0, eps, alpha, sigma)
        size = error.square() if self.error == "squared" else error.abs()
        return (self.weights(t, x_0.device) * size.flatten(1).mean(1)).mean()

    def target_of(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return what the network is to predict, (B, C, H, W): eps, v = alpha eps - sigma x_0, or eps - x_0 for flow.

        Args:
            x_0: The clean images, (B, C, H, W).
            eps: The noise, (B, C, H, W).
            alpha: alpha_t, see ``Schedule.levels``.
            sigma: sigma_t.
        """
        if self.target == "flow":
            return flow_of(x_0, eps)
        return eps if self.target == "eps" else v_of(x_0, eps, alpha, sigma)

    def hidden(self, labels: Tensor | None, no_label: int, rng: torch.Generator) -> Tensor | None:
        """Replace a random share ``label_dropout`` of the labels, (B,), by ``no_label``."""
        if labels is None:
            return None
        hide = torch.rand(len(labels), generator=rng, device=labels.device) < self.label_dropout
        return torch.where(hide, no_label, labels)

    def steps(self, count: int, rng: torch.Generator, above: int | Tensor = 0) -> Tensor:
        """Sample timesteps to train on, (count,), with above < t <= max_timestep.

        Args:
            count: How many timesteps.
            rng: The random numbers; the result is on their device.
            above: The timestep below all of them, or one for each, (count,).
        """
        last = self.schedule.steps if self.max_timestep is None else self.max_timestep
        if self.timestep_sampling == "uniform" and isinstance(above, int):
            return torch.randint(above + 1, last + 1, (count,), generator=rng, device=rng.device)
        return (above + 1 + (self._spread(count, rng) * (last - above)).long()).clamp(max=last)

    def _spread(self, count: int, rng: torch.Generator) -> Tensor:
        """Sample numbers from 0 to 1, independent or evenly spread, (count,)."""
        if self.timestep_sampling == "uniform":
            return torch.rand(count, generator=rng, device=rng.device)
        seed = int(torch.randint(2**31, (), generator=rng, device=rng.device))
        return torch.quasirandom.SobolEngine(1, scramble=True, seed=seed).draw(count).flatten().to(rng.device)

    def weights(self, t: Tensor, device: torch.device) -> Tensor:
        """Return the weight of the error at each timestep, (B,): that of the clean image weighs min(SNR, gamma).

        An error of eps is worth min(SNR, gamma) / SNR, one of v / (SNR + 1), and one of flow times sigma_t^2.
        """
        if self.min_snr is None:
            return torch.ones(len(t), device=device)
        snr = self.schedule.snr().float().to(device)[t]
        if self.target == "flow":
            return snr.clamp(max=self.min_snr) * self.schedule.sigma().float().to(device)[t].square()
        return snr.clamp(max=self.min_snr) / (snr if self.target == "eps" else snr + 1)

    def estimates(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the clean images and the noise that the output of the network implies, each (B, C, H, W).

        Args:
            out: The output of the network, (B, C, H, W).
            x_t: The noised images, (B, C, H, W).
            alpha: alpha_t, see ``Schedule.levels``.
            sigma: sigma_t.
        """
        if self.target == "eps":
            return x_0_of_eps(x_t, out, alpha, sigma), out
        if self.target == "flow":
            return x_t - sigma * out, x_t + alpha * out
        return x_0_of_v(x_t, out, alpha, sigma), eps_of_v(x_t, out, alpha, sigma)


def noised(x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_t = alpha x_0 + sigma eps."""
    return alpha * x_0 + sigma * eps


def v_of(x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """V = alpha eps - sigma x_0."""
    return alpha * eps - sigma * x_0


def flow_of(x_0: Tensor, eps: Tensor) -> Tensor:
    """Return eps - x_0, the velocity on the straight path from the image to the noise.

    Args:
        x_0: The clean images, (B, C, H, W).
        eps: The noise, (B, C, H, W).

    References:
        Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, Liu, Gong, Liu, 2022,
            arXiv 2209.03003
        Flow Matching for Generative Modeling, Lipman et al., 2022, arXiv 2210.02747
    """
    return eps - x_0


def x_0_of_v(x_t: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_0 = alpha x_t - sigma v."""
    return alpha * x_t - sigma * v


def eps_of_v(x_t: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Eps = sigma x_t + alpha v."""
    return sigma * x_t + alpha * v


def x_0_of_eps(x_t: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_0 = (x_t - sigma eps) / alpha."""
    return (x_t - sigma * eps) / alpha
