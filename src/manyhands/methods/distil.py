"""Distillation: a student learns to denoise in a few large steps what its teacher denoises in many small ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from manyhands.diffusion.norm_bound import squeezed
from manyhands.diffusion.objective import Diffusion, NoisePredictor, noised
from manyhands.diffusion.sampling import guided, timesteps
from manyhands.diffusion.solvers import denoise
from manyhands.spec import Int, Spec

if TYPE_CHECKING:
    from manyhands.methods.learners.base import BatchFunction
    from manyhands.models.base import Model
    from manyhands.silos.silo import DeviceContext
    from manyhands.tensors import Tensors


class Distil(Spec):
    """Distils a silo's network in the last rounds of a run, to denoise in steps s_0 = cut > s_1 > ... > s_N = 0.

    The teacher is the network as it was before these rounds.

    References:
        Progressive Distillation for Fast Sampling of Diffusion Models, Salimans, Ho, 2022, arXiv 2202.00512
    """

    steps: Int = Field(default=4, ge=1, le=4, description="In how many steps N the student denoises from the cut to 0.")
    rounds: Int = Field(default=1, ge=1, description="How many rounds at the end of the run distil.")
    teacher_steps: Int = Field(
        default=4, ge=1, le=1000, description="How many DDIM steps the teacher takes for one of the student."
    )

    def grid(self, cut: int) -> list[int]:
        """Return the steps s_0 > ... > s_N of the chain, evenly spread; fewer where the cut is below N."""
        return timesteps(cut, 0, self.steps)


@dataclass(frozen=True)
class Teacher:
    """The teacher: a silo's network as it was before distillation.

    Args:
        distil: The steps of student and teacher.
        diffusion: The noise schedule and the prediction target.
        model: The network.
        weights: The teacher's weights.
    """

    distil: Distil
    diffusion: Diffusion
    model: Model
    weights: Tensors

    def lesson(
        self, student: NoisePredictor, batch: BatchFunction, context: DeviceContext, rng: torch.Generator
    ) -> Callable[[Tensor], Tensor]:
        """Return a function that gives the student's loss on a batch of the silo's images, for their numbers.

        Args:
            student: The network that is trained.
            batch: Returns the silo's images and their labels.
            context: The device of the silo, and its working copies of networks.
            rng: The random numbers of the round.
        """
        network = context.network(self.model, "teacher")
        network.load_state_dict(self.weights)
        network.eval()
        classes = self.model.classes
        grid = self.distil.grid(
            self.diffusion.schedule.steps if self.diffusion.max_timestep is None else self.diffusion.max_timestep
        )

        def batch_loss(numbers: Tensor) -> Tensor:
            x_0, labels = batch(numbers)
            condition = labels if classes else None
            teacher_steps = self.distil.teacher_steps
            return loss(
                self.diffusion,
                student,
                network,
                x_0=x_0,
                labels=condition,
                no_label=classes,
                rng=rng,
                grid=grid,
                teacher_steps=teacher_steps,
            )

        return batch_loss


def loss(
    diffusion: Diffusion,
    student: NoisePredictor,
    teacher: NoisePredictor,
    *,
    x_0: Tensor,
    labels: Tensor | None,
    no_label: int,
    rng: torch.Generator,
    grid: Sequence[int],
    teacher_steps: int,
) -> Tensor:
    """Return the squared error of the student's clean images at random steps of the grid, weighted by max(SNR, 1).

    The target is the clean image with which one DDIM step of the student lands where the teacher lands. It may lie
    outside of [-1, 1], so a student is sampled without clipping.

    Args:
        diffusion: The noise schedule and the prediction target.
        student: The network that is trained.
        teacher: The network that it learns from.
        x_0: Images, of shape (B, C, H, W).
        labels: Their labels, of shape (B,), or None for an unconditional model.
        no_label: The label that stands for no class.
        rng: The random numbers of steps, noise and dropped labels.
        grid: The steps of the student, falling to 0.
        teacher_steps: How many DDIM steps the teacher takes for one of the student.
    """
    at = torch.randint(len(_falling(grid)) - 1, (len(x_0),), generator=rng, device=rng.device)
    t = torch.tensor(grid, device=rng.device)[at]
    x_0, eps = squeezed(x_0, diffusion.norm), torch.randn(x_0.shape, generator=rng, device=x_0.device)
    labels = diffusion.hidden(labels, no_label, rng)
    alpha, sigma = diffusion.schedule.levels(t, x_0)
    x_t = noised(x_0, eps, alpha, sigma)
    wanted = teacher_targets(
        diffusion, teacher, x_t=x_t, at=at, labels=labels, no_label=no_label, grid=grid, teacher_steps=teacher_steps
    )
    estimate, _ = diffusion.estimates(student(x_t, t, labels), x_t, alpha, sigma)
    weight = (alpha / sigma).square().clamp(min=1)
    return (weight * (estimate - wanted).square()).mean()


def teacher_targets(
    diffusion: Diffusion,
    teacher: NoisePredictor,
    *,
    x_t: Tensor,
    at: Tensor,
    labels: Tensor | None,
    no_label: int,
    grid: Sequence[int],
    teacher_steps: int,
) -> Tensor:
    """Return the clean images with which the student's step from grid[at] lands where the teacher lands."""
    wanted, unused_rng = torch.empty_like(x_t), torch.Generator(x_t.device)
    for number, (s, after) in enumerate(pairwise(grid)):
        rows = torch.nonzero(at == number).flatten()
        if len(rows):
            denoiser = guided(teacher, diffusion, None if labels is None else labels[rows], no_label, scale=1)
            steps = timesteps(s, after, teacher_steps)
            landed = denoise(denoiser, x_t[rows], diffusion.schedule, steps, unused_rng, eta=0)
            wanted[rows] = jump(diffusion, x_t[rows], landed, s, after)
    return wanted


def jump(diffusion: Diffusion, x_s: Tensor, landed: Tensor, s: int, after: int) -> Tensor:
    """Return the clean image x_0 with which one DDIM step from ``s`` to ``after`` takes x_s to ``landed``.

    It solves landed = alpha' x_0 + sigma' / sigma (x_s - alpha x_0) for x_0; at step 0, x_0 is landed itself.

    Args:
        diffusion: The noise schedule.
        x_s: Noised images at step s, of shape (B, C, H, W).
        landed: Images at step ``after``, of shape (B, C, H, W).
        s: The step that is left.
        after: The step that is reached.
    """
    alpha, sigma = diffusion.schedule.alpha().tolist(), diffusion.schedule.sigma().tolist()
    left = sigma[after] / sigma[s]
    clean: Tensor = (landed - left * x_s) / (alpha[after] - left * alpha[s])
    return clean


def _falling(grid: Sequence[int]) -> Sequence[int]:
    if len(grid) < 2 or grid[-1] != 0 or any(s <= after for s, after in pairwise(grid)):
        raise ValueError(f"the grid is {list(grid)}, expected steps that fall from the cut to 0")
    return grid
