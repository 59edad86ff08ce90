"""What published rivals of a cut GAN have in common: a model, a budget, and images that both fit."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from manyhands.messages.codec.codec import Float32
from manyhands.methods.base import Method, check_images
from manyhands.models.gan import Gan
from manyhands.silos.silo import Silo
from manyhands.silos.training import GanTraining
from manyhands.spec import Float
from manyhands.tensors import state_spec


class GanMethod(Method, ABC):
    """A GAN of many silos. ``ema`` is the decay of the average over rounds that images are drawn from."""

    model: Gan
    training: GanTraining
    ema: Float = Field(default=0.0, ge=0, lt=1)

    def check_silo(self, silo: Silo) -> None:
        """Its images must be those of the model, and two at least: norms need more than one."""
        check_images(silo, self.model, self.training.least)

    def check_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Refuse numbers that no weights are."""
        Float32().check(weights, state_spec(weights))

    def progress(self, number: int) -> float:
        """The share of the run that is done before a round: 0 in the first, 1 in the last."""
        return number / max(self.rounds - 1, 1)
