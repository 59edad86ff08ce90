"""What methods share whose silos each train a whole network, such as ``FedAvg`` and ``Local``."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator

from manyhands.diffusion.objective import Diffusion
from manyhands.methods.base import Method, check_images
from manyhands.methods.distil import Teacher
from manyhands.methods.learners.base import Learner, LocalResult, LocalRound
from manyhands.methods.learners.by_model import learner_type
from manyhands.methods.proximal import Proximal
from manyhands.models.base import AnyModel, Denoiser, Model
from manyhands.silos.silo import Silo
from manyhands.silos.training import Training
from manyhands.spec import Float


def check_training(training: Training, model: Model) -> None:
    """Raise ``ValueError`` where a model cannot be trained as it is asked for.

    Args:
        training: The training of a round.
        model: The model that is trained.
    """
    training.check_side(model.size)
    if (training.flip or training.shift) and _on_latents(model):
        raise ValueError(
            f"training.flip and training.shift change pixels, but {model.noun} is trained on latents, which are "
            "encoded once; mirror the images themselves, or train on pixels"
        )
    if training.checkpointing and not model.can_checkpoint:
        raise ValueError(f"training.checkpointing is for networks of diffusers, which {model.noun} is not")
    if training.compile and not isinstance(model, Denoiser):
        raise ValueError(f"training.compile is for denoisers, which {model.noun} is not")


def _on_latents(model: Model) -> bool:
    return isinstance(model, Denoiser) and model.noise_shape != (model.channels, model.size, model.size)


class WholeNetworkMethod(Method, ABC):
    """A network, its objective, and one round of training at a silo.

    What differs between kinds of models is in the ``learner``: the objective, what is sent before the first round, and
    the generator.
    """

    model: AnyModel = Field(
        description="The network that each silo trains: a U-Net, latent model, autoencoder, GAN or other model."
    )
    training: Training = Field(description="The local training of a round: batch, steps or epochs, and optimiser.")
    diffusion: Diffusion = Field(
        default=Diffusion(), description="The noise schedule and the objective; not used by a GAN or an autoencoder."
    )
    ema: Float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="The decay of the average of weights over rounds that images are sampled with; 0 uses the last "
        "weights.",
    )

    @field_validator("training", mode="before")
    @classmethod
    def _defaults_of_the_learner(cls, training: Any, info: ValidationInfo) -> Any:
        """Read the training with the defaults of its learner, which for a GAN are others."""
        if not isinstance(training, dict) or (model := info.data.get("model")) is None:
            return training
        return learner_type(type(model)).training_type.model_validate(training)

    @model_validator(mode="after")
    def _training_fits_model(self) -> Self:
        needed = learner_type(type(self.model)).training_type
        if type(self.training) is not needed:
            raise ValueError(f"{self.model.noun} needs a {needed.__name__}, not a {type(self.training).__name__}")
        check_training(self.training, self.model)
        return self

    @property
    def learner(self) -> Learner[Any]:
        """How silos train the model, and what generates images with it."""
        return learner_type(type(self.model))(self.model, self.training, self.diffusion, self.ema)

    def cited_parts(self) -> list[object]:
        """Return the parts whose papers are cited; without ``diffusion`` where the learner does not use it."""
        left_out = None if self.learner.uses_diffusion else self.diffusion
        return [part for part in super().cited_parts() if part is None or part is not left_out]

    def check_silo(self, silo: Silo) -> None:
        """Check that the images have the model's size, and labels if it is conditional."""
        check_images(silo, self.model, self.training.min_images)

    def warnings(self, roster: Mapping[str, int]) -> list[str]:
        """Return the warnings of the learner."""
        return self.learner.warnings()

    @property
    def takes_guidance(self) -> bool:
        """Whether labels are left out of some batches."""
        return self.diffusion.label_dropout > 0

    def train_round(
        self,
        network: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        silo: Silo,
        number: int,
        proximal: Proximal | None = None,
        teacher: Teacher | None = None,
    ) -> LocalResult:
        """Train a network for one round on a silo's images; see ``LocalRound`` for the arguments."""
        return self.learner.train_round(
            LocalRound(
                network=network,
                optimiser=optimiser,
                silo=silo,
                number=number,
                proximal=proximal,
                teacher=teacher,
            )
        )
