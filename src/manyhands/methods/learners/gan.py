"""Trains both networks of a GAN, which have a loss each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from manyhands.generators.gan import GanGenerator, generator_weights
from manyhands.methods.learners.base import Learner, LocalResult, LocalRound, pixel_batches
from manyhands.models.gan import Gan, iteration
from manyhands.silos.flops import Meter
from manyhands.silos.step_average import StepAverage
from manyhands.silos.training import GanTraining, Training

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
        batch, meter = pixel_batches(self, local, rng), Meter(context.known_flops)
        batches = list(self.training.batches(len(local.silo.images), rng))
        local.loader.announce(batches)
        total = torch.zeros((), device=context.device)
        average = StepAverage(networks, self.training.step_ema) if self.training.step_ema else None
        networks.train()
        for numbers in batches:
            x, labels = batch(numbers)
            z = torch.randn(len(x), model.latent, generator=rng, device=x.device)
            with meter.work(model, "iteration", len(x)):
                condition = labels if model.classes else None
                total += iteration(model, networks, local.optimiser, x=x, labels=condition, z=z)[0]
            if average:
                average.add()
        loss, seen = total.item() / len(batches), sum(map(len, batches))
        return LocalResult(loss, seen, meter.flops, average.tensors() if average else None)

    def generator(self, weights: Tensors) -> GanGenerator:
        """Return the generator without the discriminator."""
        return GanGenerator(self.model, generator_weights(weights), ema=self.ema)
