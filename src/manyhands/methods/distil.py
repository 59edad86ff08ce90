"""A denoiser taught to come down an interval in a few large steps, where its teacher takes many small ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from manyhands.diffusion.objective import Diffusion, Network, noised
from manyhands.diffusion.sample import denoise, guided, timesteps
from manyhands.diffusion.squeeze import squeezed
from manyhands.spec import Int, Spec

if TYPE_CHECKING:
    from manyhands.models.unet import UNet
    from manyhands.silos.silo import Silo
    from manyhands.tensors import Tensors


class Distil(Spec):
    """The last ``rounds`` of a run teach a student to come down in ``steps``: s_0 = cut > s_1 > ... > s_N = 0.

    Its teacher is the denoiser as it was before them, which takes ``teacher_steps`` DDIM steps within each.

    References:
        Progressive Distillation for Fast Sampling of Diffusion Models, Salimans, Ho, 2022, arXiv 2202.00512
    """

    steps: Int = Field(default=4, ge=1, le=4)
    rounds: Int = Field(default=1, ge=1)
    teacher_steps: Int = Field(default=4, ge=1, le=1000)

    def grid(self, cut: int) -> list[int]:
        """The steps of the chain that the student stops at, evenly spread; fewer where the cut has no more."""
        return timesteps(cut, 0, self.steps)


@dataclass(frozen=True)
class Teacher:
    """What a silo's network was before it is taught, and what it teaches."""

    distil: Distil
    diffusion: Diffusion
    model: UNet
    weights: Tensors

    def lesson(self, student: Network, silo: Silo, rng: torch.Generator) -> Callable[[Tensor], Tensor]:
        """The student's loss on a batch of the silo's images, told by their numbers."""
        network = silo.device_context.network(self.model, "teacher")
        network.load_state_dict(self.weights)
        network.eval()
        images, classes = silo.images.to(silo.device_context.device), self.model.classes
        grid = self.distil.grid(self.diffusion.schedule.steps if self.diffusion.upto is None else self.diffusion.upto)

        def of(numbers: Tensor) -> Tensor:
            x_0, labels = images.batch(numbers)
            known = labels if classes else None
            return loss(self.diffusion, student, network, x_0, known, classes, rng, grid, self.distil.teacher_steps)

        return of


def loss(
    diffusion: Diffusion,
    student: Network,
    teacher: Network,
    x_0: Tensor,
    labels: Tensor | None,
    no_label: int,
    rng: torch.Generator,
    grid: Sequence[int],
    teacher_steps: int,
) -> Tensor:
    """The error of the student's clean images at random steps of the grid, weighted by max(SNR, 1).

    They are held against those with which one DDIM step lands where the teacher landed. Such an image may lie outside
    [-1, 1]: a student is denoised down its grid without a bound.
    """
    at = torch.randint(len(_falling(grid)) - 1, (len(x_0),), generator=rng, device=rng.device)
    t = torch.tensor(grid, device=rng.device)[at]
    x_0, eps = squeezed(x_0, diffusion.norm), torch.randn(x_0.shape, generator=rng, device=x_0.device)
    labels = diffusion.hidden(labels, no_label, rng)
    alpha, sigma = diffusion.schedule.levels(t, x_0)
    x_t = noised(x_0, eps, alpha, sigma)
    wanted = taught(diffusion, teacher, x_t, at, labels, no_label, grid, teacher_steps)
    said, _ = diffusion.estimates(student(x_t, t, labels), x_t, alpha, sigma)
    weight = (alpha / sigma).square().clamp(min=1)
    return (weight * (said - wanted).square()).mean()


def taught(
    diffusion: Diffusion,
    teacher: Network,
    x_t: Tensor,
    at: Tensor,
    labels: Tensor | None,
    no_label: int,
    grid: Sequence[int],
    teacher_steps: int,
) -> Tensor:
    """The clean images with which one step from number ``at`` of the grid to the next lands where the teacher does."""
    wanted, still = torch.empty_like(x_t), torch.Generator(x_t.device)
    for number, (s, after) in enumerate(pairwise(grid)):
        mine = torch.nonzero(at == number).flatten()
        if len(mine):
            denoiser = guided(teacher, diffusion, None if labels is None else labels[mine], no_label, scale=1)
            landed = denoise(denoiser, x_t[mine], diffusion.schedule, timesteps(s, after, teacher_steps), still, eta=0)
            wanted[mine] = jump(diffusion, x_t[mine], landed, s, after)
    return wanted


def jump(diffusion: Diffusion, x_s: Tensor, landed: Tensor, s: int, after: int) -> Tensor:
    """The clean image with which one DDIM step from ``s`` to ``after`` takes x_s to where it landed.

    What landed = alpha' x_0 + sigma' / sigma (x_s - alpha x_0) says of x_0; at step 0 that is what landed itself.
    """
    alpha_bar = diffusion.schedule.alpha_bar().tolist()
    alpha, alpha_after = alpha_bar[s] ** 0.5, alpha_bar[after] ** 0.5
    left = ((1 - alpha_bar[after]) / (1 - alpha_bar[s])) ** 0.5
    clean: Tensor = (landed - left * x_s) / (alpha_after - left * alpha)
    return clean


def _falling(grid: Sequence[int]) -> Sequence[int]:
    if len(grid) < 2 or grid[-1] != 0 or any(s <= after for s, after in pairwise(grid)):
        raise ValueError(f"a grid falls from a cut to 0, not {list(grid)}")
    return grid
