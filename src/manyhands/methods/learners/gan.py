"""Trains both networks of a GAN, which have a loss each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from manyhands.generators.gan import GanGenerator, generator_weights
from manyhands.methods.learners.base import Learner, LocalResult, LocalRound
from manyhands.models.gan import Gan, iteration
from manyhands.silos.flops import Meter
from manyhands.silos.local_training import GanTraining, Training

if TYPE_CHECKING:
    from manyhands.tensors import Tensors


class GanLearner(Learner[Gan]):
    """Trains the discriminator and the generator of a GAN in turn."""

    training_type: ClassVar[type[Training]] = GanTraining
    has_single_loss: ClassVar[bool] = False

    def train_round(self, local: LocalRound) -> LocalResult:
        """Train both networks for one round; the loss is the discriminator's."""
        networks: Any = local.network
        model, context, rng = self.model, local.silo.device_context, local.silo.rng(local.number)
        images, meter = local.silo.images.to(context.device), Meter(context.known_flops)
        batches, total = list(self.training.batches(len(images), rng)), torch.zeros((), device=context.device)
        networks.train()
        for numbers in batches:
            x, labels = images.batch(numbers)
            z = torch.randn(len(x), model.latent, generator=rng, device=x.device)
            with meter.work(model, "iteration", len(x)):
                condition = labels if model.classes else None
                total += iteration(model, networks, local.optimiser, x=x, labels=condition, z=z)[0]
        return LocalResult(total.item() / len(batches), sum(map(len, batches)), meter.flops)

    def generator(self, weights: Tensors) -> GanGenerator:
        """Return the generator without the discriminator."""
        return GanGenerator(self.model, generator_weights(weights), ema=self.ema)
