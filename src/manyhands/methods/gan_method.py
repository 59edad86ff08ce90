"""What methods share that train a GAN over silos: its model, its training and the checks of images."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from manyhands.messages.codec.codec import Float32
from manyhands.methods.base import Method, check_images
from manyhands.models.gan import Gan
from manyhands.silos.silo import Silo
from manyhands.silos.training import GanTraining
from manyhands.spec import Float
from manyhands.tensors import state_spec


class GanMethod(Method, ABC):
    """A method that trains a GAN over silos."""

    model: Gan = Field(description="The generator and the discriminator.")
    training: GanTraining = Field(description="The training of a round: batch, steps or epochs, and optimiser.")
    ema: Float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="The decay of the average of weights over rounds that images are sampled with; 0 uses the last "
        "weights.",
    )

    @model_validator(mode="after")
    def _training_fits_cut_networks(self) -> Self:
        self.training.check_side(self.model.size)
        if self.training.step_ema:
            raise ValueError(
                f"training.step_ema is for networks that a silo trains whole, but {self.kind} trains them in parts; "
                "ema averages over rounds"
            )
        return self

    def check_silo(self, silo: Silo) -> None:
        """Check that the images fit the model, and that there are at least two, as normalisation needs."""
        check_images(silo, self.model, self.training.min_images)

    def check_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Raise ``Refused`` for numbers that are too large to be weights, or not finite."""
        Float32().check(weights, state_spec(weights))
