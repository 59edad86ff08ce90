"""Trains a denoiser of images, such as a U-Net, on the objective of ``Diffusion``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.methods.learners.base import BatchFunction, Learner, LocalResult, LocalRound, minimize, pixel_batches
from manyhands.models.base import Denoiser

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from manyhands.tensors import Tensors


class DenoiserLearner(Learner[Denoiser]):
    """Trains a denoiser on noised images, or distils it."""

    uses_diffusion: ClassVar[bool] = True
    can_distil: ClassVar[bool] = True

    def train_round(self, local: LocalRound) -> LocalResult:
        """Train for one round, on the teacher's lesson where there is a teacher."""
        rng = local.silo.rng(local.number)
        batch = pixel_batches(self, local, rng)
        if local.teacher:
            lesson = local.teacher.lesson(local.network, batch, local.silo.device_context, rng)
            return minimize(self, local, lesson, rng)
        return minimize(self, local, denoising_loss(self, local, batch, rng), rng)

    def generator(self, weights: Tensors) -> DiffusionGenerator:
        """Return the generator with these weights."""
        return DiffusionGenerator(self.model, self.diffusion, weights, ema=self.ema)


def denoising_loss(
    learner: Learner[Any], local: LocalRound, batch: BatchFunction, rng: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """Return a function that gives the loss of a denoiser on a batch, for the numbers of its images, (B,).

    Args:
        learner: The learner of the denoiser.
        local: The round, with the network.
        batch: Returns what the network is trained on.
        rng: The random numbers of timesteps, noise and hidden labels.
    """
    classes = learner.model.classes

    def loss(numbers: Tensor) -> Tensor:
        x_0, labels = batch(numbers)
        return learner.diffusion.loss(local.network, x_0, labels if classes else None, classes, rng)

    return loss
