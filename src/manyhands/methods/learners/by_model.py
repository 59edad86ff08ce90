"""Which learner trains a model."""

from __future__ import annotations

from typing import Any

from manyhands.methods.learners.autoencoder import AutoencoderLearner
from manyhands.methods.learners.base import Learner
from manyhands.methods.learners.denoiser import DenoiserLearner
from manyhands.methods.learners.gan import GanLearner
from manyhands.methods.learners.latent import LatentLearner
from manyhands.methods.learners.pretrained import PretrainedLearner
from manyhands.models.autoencoder import Autoencoder
from manyhands.models.base import Denoiser, Model
from manyhands.models.gan import Gan
from manyhands.models.latent import Latent
from manyhands.models.pretrained import Pretrained

LEARNERS: dict[type[Any], type[Learner[Any]]] = {
    Denoiser: DenoiserLearner, Latent: LatentLearner, Pretrained: PretrainedLearner,
    Autoencoder: AutoencoderLearner, Gan: GanLearner
}  # fmt: skip
"""The learner of each class of models and of what derives from it, unless a model names its own as ``learner``."""


def learner_type(model: type[Model]) -> type[Learner[Any]]:
    """Return the learner of a class of models: its own, or that of its nearest base class.

    Args:
        model: The class of the model.

    Raises:
        ValueError: No learner trains such a model.
    """
    known = [LEARNERS[base] for base in model.__mro__ if base in LEARNERS]
    if not (model.learner or known):
        raise ValueError(f"{model.__name__} has no learner: derive it from Denoiser, or name its own as `learner`")
    return model.learner or known[0]
