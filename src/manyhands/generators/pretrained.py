"""Stores what was trained of a pretrained model, so that diffusers and PEFT load it onto the same base."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import safetensors.torch

from manyhands.files.strict_json import finite_json
from manyhands.models.adapters import A, B, layers_of
from manyhands.models.base import Denoiser
from manyhands.models.pretrained import Pretrained, PretrainedModule
from manyhands.models.state_spec import state_spec_of
from manyhands.tensors import Tensors, snapshot

ADAPTER = "adapter"
"""The folder of adapters in the layout of PEFT."""
LORA = "pytorch_lora_weights.safetensors"
"""The file of adapters that ``load_lora_weights`` of a pipeline of diffusers loads."""
UNET = "unet"
TEXT_PARTS = ("text_encoder", "tokenizer")
METADATA = "lora_adapter_metadata"
"""The entry of a safetensors file in which diffusers keeps the rank and alpha of adapters."""


def write_adapters(network: PretrainedModule, folder: Path) -> None:
    """Write adapters as PEFT does, and once more as diffusers does.

    Args:
        network: The network with its trained adapters.
        folder: The folder of the generator.
    """
    config = network.inner.peft_config["default"]
    factors = {name: tensor for name, tensor in network.inner.state_dict().items() if name.endswith((A, B))}
    plain = {name.replace(".default.", "."): tensor.contiguous() for name, tensor in snapshot(factors).items()}
    config.target_modules = sorted(layers_of(factors))
    whole = {name.removeprefix("inner."): value for name, value in snapshot(network.state_dict()).items()
             if not name.endswith((A, B))}  # fmt: skip
    config.modules_to_save = sorted({name.rpartition(".")[0] for name in whole}) or None
    config.save_pretrained(folder / ADAPTER)
    peft = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in (plain | whole).items()}
    safetensors.torch.save_file(peft, folder / ADAPTER / "adapter_model.safetensors", metadata={"format": "pt"})
    facts = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    metadata = {"format": "pt", METADATA: finite_json({f"{UNET}.{name}": value for name, value in facts.items()})}
    pipeline = {f"{UNET}.{name}": tensor for name, tensor in plain.items()}
    safetensors.torch.save_file(pipeline, folder / LORA, metadata=metadata)


def stored_adapters(folder: Path, model: Denoiser) -> Tensors:
    """Read what ``write_adapters`` wrote of what is trained, by the names of the network.

    Args:
        folder: The folder of the generator.
        model: The specification of the network.
    """
    raw = safetensors.torch.load_file(folder / ADAPTER / "adapter_model.safetensors")
    every = {
        name.replace("base_model.model.", "inner.", 1)
        .replace("lora_A.", "lora_A.default.")
        .replace("lora_B.", "lora_B.default."): tensor
        for name, tensor in raw.items()
    }
    trained = state_spec_of(model)
    return {name: tensor for name, tensor in every.items() if name in trained}


def plain_unet(network: Any) -> Any:
    """Return the U-Net of diffusers in a network, with the products of adapters added where it has any.

    Args:
        network: The network with its trained weights.
    """
    if not isinstance(network, PretrainedModule):
        return network.inner
    plain = type(network.inner).from_config(network.folder.unet_config)
    plain.load_state_dict(network.merged())
    return plain


def write_text_parts(network: PretrainedModule, folder: Path) -> dict[str, Any]:
    """Copy the text encoder of a pipeline, and return the entries of its model_index.json.

    Args:
        network: The network with its trained weights.
        folder: The folder of the generator.
    """
    for name in TEXT_PARTS:
        shutil.copytree(network.folder.path / name, folder / name)
    return {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }


def has_adapters(model: Denoiser) -> bool:
    """Whether a model's generator is stored as adapters; stacked ones are added to the U-Net, which is stored whole."""
    return isinstance(model, Pretrained) and model.adapter is not None and not model.stacking


def takes_text(model: Denoiser) -> bool:
    """Whether a model is told by a text what to draw."""
    return isinstance(model, Pretrained) and model.parts.takes_text


def begun_from(model: Denoiser, folder: Path) -> Denoiser:
    """Return the specification with which a stored generator is loaded: a whole U-Net begins from its own folder.

    Args:
        model: The specification that it was trained with.
        folder: The folder of the generator.
    """
    if not isinstance(model, Pretrained) or has_adapters(model):
        return model
    return model.model_copy(update={"folder": str(folder), "adapter": None, "revision": None})


def check_frozen(network: Any, expected: str | None) -> None:
    """Raise ``ValueError`` where adapters are loaded onto another base than they were trained on.

    Args:
        network: The network with its adapters.
        expected: The hash of the frozen weights that they were trained on; None where nothing was frozen.
    """
    if expected is not None and network.frozen_hash != expected:
        raise ValueError(
            f"its adapters were trained on other frozen weights than {network.folder.path} has now; put those back"
        )
