"""Loads the trained model of a run, of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from manyhands.errors import RunFolderError
from manyhands.generators.base import ImageGenerator
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.generators.gan import GanGenerator
from manyhands.models.autoencoder import Autoencoder, TrainedAutoencoder, stored_facts
from manyhands.models.base import Denoiser, Model
from manyhands.models.gan import Gan
from manyhands.registry import MODELS

TrainedModel: TypeAlias = ImageGenerator | TrainedAutoencoder
"""What a run leaves behind."""


def load(folder: Path, device: str = "cpu") -> TrainedModel:
    """Load a trained model.

    Args:
        folder: The ``model/`` folder of a run.
        device: The device to use it on.

    Raises:
        RunFolderError: The folder holds no trained model.
    """
    try:
        facts = stored_facts(folder)
        spec = MODELS.load(str(facts["model"]["kind"]))
        if issubclass(spec, Gan):
            return GanGenerator.from_pretrained(folder, device)
        if issubclass(spec, Denoiser):
            return DiffusionGenerator.from_pretrained(folder, device)
        model: Model = spec.model_validate(facts["model"])  # type: ignore[assignment] # a class of MODELS
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{folder}: holds no trained generator: {error}") from None
    if not isinstance(model, Autoencoder):
        return model.load_generator(folder, device)
    return TrainedAutoencoder.from_pretrained(folder, model, device, facts["ema"])
