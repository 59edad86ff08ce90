"""The kinds of models, by the name that recipes and run folders have for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manyhands.models.autoencoder import Autoencoder
from manyhands.models.base import Model
from manyhands.models.gan import Gan
from manyhands.models.latent import Latent
from manyhands.models.unet import UNet
from manyhands.spec import suggest

MODELS: dict[str, type[Model]] = {"unet": UNet, "latent": Latent, "autoencoder": Autoencoder, "gan": Gan}


def model_of(fields: Mapping[str, Any]) -> Model:
    """Return the specification with these fields, its ``kind`` among them.

    Args:
        fields: Plain values, as a recipe or the facts of a run folder have them.

    Raises:
        ValueError: There is no such kind, or the fields do not fit it.
    """
    kind = str(fields.get("kind"))
    if kind not in MODELS:
        raise ValueError(f"model.kind: {kind!r} is not known; {suggest(kind, list(MODELS))}")
    return MODELS[kind].model_validate(fields)
