"""Trains a denoiser of images, such as a U-Net, on the objective of ``Diffusion``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.methods.learners.base import Learner, LocalResult, LocalRound, minimize
from manyhands.models.base import Denoiser

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from manyhands.tensors import Tensors

BatchFunction = Callable[["Tensor"], "tuple[Tensor, Tensor | None]"]
"""Returns what a network is trained on for the numbers of images, (B,): images or latents and their labels."""


class DenoiserLearner(Learner[Denoiser]):
    """Trains a denoiser on noised images, or distils it."""

    uses_diffusion: ClassVar[bool] = True
    can_distil: ClassVar[bool] = True

    def train_round(self, local: LocalRound) -> LocalResult:
        """Train for one round, on the teacher's lesson where there is a teacher."""
        silo, rng = local.silo, local.silo.rng(local.number)
        if local.teacher:
            return minimize(self, local, local.teacher.lesson(local.network, silo, rng), rng)
        batch = silo.images.to(silo.device_context.device).batch
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
