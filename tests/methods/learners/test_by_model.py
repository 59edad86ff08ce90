"""A model brings its learner: that of its nearest base class, or one of its own."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest
from torch import nn

from manyhands import Autoencoder, FedAvg, Gan, GanTraining, Local, Training, UNet
from manyhands.methods.distil import Distil
from manyhands.methods.learners.base import Learner
from manyhands.methods.learners.by_model import LEARNERS, learner_type
from manyhands.methods.learners.denoiser import DenoiserLearner
from manyhands.methods.learners.gan import GanLearner
from manyhands.methods.learners.latent import LatentLearner
from manyhands.models.base import Denoiser, Model
from manyhands.models.latent import Latent
from manyhands.models.pretrained import Pretrained

UNET = UNet(size=8, channels=1, classes=0, widths=(8,))
GAN = Gan(size=8, channels=1, classes=0, width=4)
AUTOENCODER = Autoencoder(size=8, channels=1, widths=(8, 8))


class OtherDenoiser(Denoiser):
    kind: Literal["other"] = "other"

    def build(self, seed: int) -> nn.Module:
        return nn.Conv2d(self.channels, self.channels, 1)


class OwnLearner(OtherDenoiser):
    learner: ClassVar[type[Learner[Any]] | None] = GanLearner


class Unknown(Model):
    kind: Literal["unknown"] = "unknown"
    classes: int = 0

    def build(self, seed: int) -> nn.Module:
        return nn.Identity()


def test_a_model_has_the_learner_of_its_nearest_base_class() -> None:
    assert learner_type(UNet) is learner_type(OtherDenoiser) is DenoiserLearner
    assert learner_type(Latent) is LatentLearner  # it is a Denoiser, too
    assert learner_type(Gan) is GanLearner
    assert set(LEARNERS) == {Denoiser, Latent, Pretrained, Autoencoder, Gan}


def test_a_model_may_name_a_learner_of_its_own() -> None:
    assert learner_type(OwnLearner) is GanLearner


def test_a_model_without_a_learner_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="Unknown has no learner: derive it from Denoiser, or name its own"):
        learner_type(Unknown)


def test_a_training_is_read_with_the_defaults_of_the_learner() -> None:
    plain = {"steps": 1, "batch": 2}
    assert FedAvg.model_validate({"model": GAN, "training": plain, "rounds": 1}).training == GanTraining(**plain)
    assert FedAvg.model_validate({"model": UNET, "training": plain, "rounds": 1}).training == Training(**plain)
    as_dict = {"model": GAN.model_dump(), "training": plain, "rounds": 1}
    assert FedAvg.model_validate(as_dict).training == GanTraining(**plain)


@pytest.mark.parametrize(
    ("kind", "fields", "error"),
    [
        (FedAvg, {"model": GAN, "training": Training(steps=1)}, "a GAN needs a GanTraining, not a Training"),
        (FedAvg, {"model": UNET, "training": GanTraining(steps=1)}, "kind 'unet' needs a Training, not a GanTraining"),
        (FedAvg, {"model": GAN, "training": {"steps": 1}, "proximal": 0.1}, "single loss, but a GAN has two"),
        (FedAvg, {"model": AUTOENCODER, "training": Training(steps=1), "share": "up"}, "an autoencoder can only be"),
        (Local, {"model": GAN, "training": GanTraining(steps=1), "distil": Distil()}, "such as a U-Net, not for a GAN"),
    ],
)
def test_what_a_learner_does_not_have_is_refused(kind: type[Any], fields: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        kind(rounds=2, **fields)
