"""The folder of a pretrained model in the layout of diffusers: which parts it has, and what they are for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from pydantic import ValidationError

from manyhands.errors import RecipeError
from manyhands.models.autoencoder import Autoencoder
from manyhands.tensors import Tensors

FIELD = "method.model.folder"
HUB_NAME = r"[\w.-]+/[\w.-]+"
HUB_FILES = ["*.json", "*/*.json", "*/*.txt", "*.safetensors", "*/*.safetensors"]
NOT_FROM_HUB = ["*.fp16.safetensors", "*non_ema*", "safety_checker/*", "v1-*", "v2-*"]
UNETS = ("UNet2DModel", "UNet2DConditionModel")
OTHER_INPUTS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")
"""Entries of a U-Net's config.json that ask for more inputs than an image, its timestep and a label or text."""


@dataclass(frozen=True)
class PretrainedFolder:
    """The parts of a pretrained model: a U-Net alone, or a pipeline with an autoencoder and perhaps a text encoder.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def unet(self) -> Path:
        """The folder of the U-Net, which in a pipeline is a folder of its own."""
        return self.path / "unet" if (self.path / "unet").is_dir() else self.path

    @property
    def vae(self) -> Path | None:
        """The folder of the autoencoder; None for a model of pixels."""
        return self._part("vae")

    @property
    def text_encoder(self) -> Path | None:
        """The folder of the text encoder; None for a model without one."""
        return self._part("text_encoder")

    @cached_property
    def unet_config(self) -> dict[str, Any]:
        """The config.json of the U-Net, which is one that takes an image, its timestep, and a label or a text."""
        config = self.config(self.unet)
        kind = config.get("_class_name")
        if kind not in UNETS:
            raise self.error(f"holds a {kind}, but a {' or a '.join(UNETS)} of diffusers is expected")
        if more := [name for name in OTHER_INPUTS if config.get(name) is not None]:
            raise self.error(f"its U-Net takes more than a label or a text: {more[0]} is {config[more[0]]!r}")
        if kind == "UNet2DConditionModel" and not self.text_encoder:
            raise self.error(
                "its UNet2DConditionModel needs a text encoder; name the folder of the whole pipeline, with "
                "text_encoder and tokenizer"
            )
        return config

    @property
    def takes_text(self) -> bool:
        """Whether the U-Net is told what to draw by a text."""
        return bool(self.unet_config["_class_name"] == "UNet2DConditionModel")

    @property
    def classes(self) -> int | None:
        """The number of classes that the U-Net was trained with; None where it is told by a text.

        One more class of a U-Net means no label.
        """
        count = self.unet_config.get("num_class_embeds")
        return None if self.takes_text else max((count or 0) - 1, 0)

    @property
    def scale(self) -> float:
        """What latents are multiplied by before the U-Net sees them; 1 for pixels."""
        return float(self.config(self.vae).get("scaling_factor", 1.0)) if self.vae else 1.0

    @property
    def scheduler(self) -> dict[str, Any]:
        """The noise schedule that the U-Net was trained with; empty where the folder does not say."""
        path = self.path / "scheduler" / "scheduler_config.json"
        return self.read_json(path) if path.is_file() else {}

    def autoencoder(self, size: int) -> Autoencoder | None:
        """Return the specification of the autoencoder; None for a model of pixels.

        Args:
            size: The side of the images in pixels.
        """
        if not self.vae:
            return None
        config = self.config(self.vae)
        try:
            return Autoencoder(
                size=size,
                channels=config["in_channels"],
                latent=config["latent_channels"],
                widths=tuple(config["block_out_channels"]),
                blocks=config["layers_per_block"],
                attention=config.get("mid_block_add_attention", True),
                groups=config["norm_num_groups"],
            )
        except (KeyError, TypeError, ValidationError, RecipeError) as error:
            raise self.error(f"its autoencoder cannot be used for images of {size} pixels: {error}") from None

    def check(self, size: int, channels: int, classes: int) -> None:
        """Raise ``RecipeError`` where the model is not for such images and classes.

        Args:
            size: The side of the images in pixels.
            channels: The number of image channels.
            classes: The number of classes; 0 for none.
        """
        config, first = self.unet_config, self.autoencoder(size)
        if first and first.channels != channels:
            raise self.error(
                f"its autoencoder is for {first.channels} channels, the images have {channels}; set data.channels = "
                f"{first.channels}"
            )
        side, depth = (first.side, first.latent) if first else (size, channels)
        if not (config.get("in_channels") == config.get("out_channels") == depth):
            what = "latents" if first else "images"
            known = f"{config.get('in_channels')} channels in and {config.get('out_channels')} out"
            is_plain = not first and config.get("in_channels") == config.get("out_channels")
            hint = f"; set data.channels = {config['in_channels']}" if is_plain else ""
            raise self.error(f"its U-Net has {known}, but the {what} have {depth}{hint}")
        if config.get("sample_size") not in (side, [side, side]):
            expected = config.get("sample_size")
            hint = f"; set data.size = {expected * size // side}" if isinstance(expected, int) else ""
            raise self.error(f"its U-Net is for a side of {expected}, but that of these images is {side}{hint}")
        if self.classes is not None and self.classes != classes:
            raise self.error(
                f"its U-Net was trained with {self.classes} classes, but there are {classes}; only a model with as "
                "many classes, or one that is told them by a text, can be trained further"
            )

    def config(self, part: Path | None) -> dict[str, Any]:
        """Read the config.json of a part."""
        return self.read_json((part or self.path) / "config.json")

    def read_json(self, path: Path) -> dict[str, Any]:
        """Read a file that holds a JSON object."""
        try:
            value = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise self.error(f"{self._name(path)} cannot be read ({type(error).__name__}), {WANTED}") from None
        if not isinstance(value, dict):
            raise self.error(f"{self._name(path)} holds no table, {WANTED}")
        return value

    def tensors(self, part: Path) -> Tensors:
        """Read the tensors of all safetensors files of a part."""
        files = sorted(path for path in part.glob("*.safetensors") if "fp16" not in path.name)
        if not files:
            raise self.error(f"{self._name(part)} has no .safetensors file; other formats are never read")
        try:
            return {name: tensor for path in files for name, tensor in safetensors.torch.load_file(path).items()}
        except (OSError, safetensors.SafetensorError) as error:
            raise self.error(f"{self._name(part)}: its weights cannot be read: {error}") from None

    def error(self, text: str) -> RecipeError:
        """Return an error about the folder."""
        return RecipeError(f"{FIELD}: {self.path}: {text}")

    def _part(self, name: str) -> Path | None:
        return self.path / name if (self.path / name).is_dir() else None

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.path)) if path != self.path else "it"


WANTED = "a folder in the layout of diffusers is expected, such as the model/ folder of a run"


def located(folder: str, revision: str | None = None) -> PretrainedFolder:
    """Return the folder of a pretrained model, which is fetched from the Hub where it is a name of the Hub.

    Args:
        folder: A folder, or owner/name on the Hugging Face Hub.
        revision: The branch, tag or commit on the Hub; None for the main branch.
    """
    path = Path(folder).expanduser()
    if path.is_dir():
        return PretrainedFolder(path)
    if not re.fullmatch(HUB_NAME, folder):
        raise RecipeError(f"{FIELD}: {folder!r} is no folder; {WANTED}, or the owner/name of one on the Hub")
    return PretrainedFolder(_from_hub(folder, revision))


@cache
def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # a requirement of diffusers

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=NOT_FROM_HUB))
    except (OSError, ValueError) as error:  # what the Hub's client raises without a network or without the name
        raise RecipeError(
            f"{FIELD}: {name!r} is no folder here, and could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}); fetch it where there is a network, and name the folder"
        ) from None
