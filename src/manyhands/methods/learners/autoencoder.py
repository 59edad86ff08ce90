"""Trains an autoencoder on its own objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manyhands.methods.learners.base import Learner, LocalResult, LocalRound, minimize, pixel_batches
from manyhands.models.autoencoder import Autoencoder, TrainedAutoencoder

if TYPE_CHECKING:
    from manyhands.tensors import Tensors


class AutoencoderLearner(Learner[Autoencoder]):
    """Trains an autoencoder to reconstruct images."""

    def train_round(self, local: LocalRound) -> LocalResult:
        """Train for one round; labels are not used."""
        network: Any = local.network
        rng = local.silo.rng(local.number)
        batch = pixel_batches(self, local, rng)
        return minimize(self, local, lambda numbers: self.model.loss(network, batch(numbers)[0], rng), rng)

    def generator(self, weights: Tensors) -> TrainedAutoencoder:
        """Return the autoencoder with these weights."""
        return TrainedAutoencoder(self.model, weights, ema=self.ema)
