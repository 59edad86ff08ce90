"""A pretrained U-Net, alone or in a pipeline with an autoencoder and a text encoder, that silos train further."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from manyhands.models.adapters import BASE, DELTA, A, Adapter, B
from manyhands.models.autoencoder import TrainedAutoencoder
from manyhands.models.base import Denoiser
from manyhands.models.pretrained_folder import PretrainedFolder, located
from manyhands.models.prompts import encoded, prompts_of
from manyhands.models.unet import unet_part
from manyhands.seed import seeded_globally
from manyhands.spec import MAX_SHOWN, Int
from manyhands.tensors import Tensors, add_prefix, sha256

if TYPE_CHECKING:
    from pathlib import Path

PRISTINE = "pristine"
"""The name of a layer's weight as it was before the products of stacked adapters were added."""


class Pretrained(Denoiser):
    """A U-Net that was trained before, as the beginning of a run: all of it is trained, or adapters on it.

    Its folder has the layout of diffusers: a U-Net alone, such as the ``model/`` folder of a run, or a whole pipeline
    with an autoencoder and a text encoder, as Stable Diffusion has it. Only what is trained is ever sent. The frozen
    parts are at every silo, and compared by hash before the first round.

    References:
        High-Resolution Image Synthesis with Latent Diffusion Models, Rombach et al., 2022, arXiv 2112.10752
    """

    has_parts: ClassVar[bool] = True
    diffusers_folder: ClassVar[str] = "unet"
    can_checkpoint: ClassVar[bool] = True

    kind: Literal["pretrained"] = Field(default="pretrained", description="Selects this kind of model.")
    size: Int = Field(ge=4, le=2048, description="The side of the square images in pixels.")
    channels: Int = Field(ge=1, le=16, description="The number of image channels: 1 for grey, 3 for RGB.")
    classes: Int = Field(ge=0, le=100_000, description="The number of classes; 0 for an unconditional model.")
    folder: str = Field(
        min_length=1,
        description="The folder of the model in the layout of diffusers, such as the `model/` folder of a run; or the "
        "owner/name of one on the Hugging Face Hub, where there is a network.",
    )
    revision: str | None = Field(
        default=None, description="The branch, tag or commit of a model on the Hub; None takes its main branch."
    )
    adapter: Adapter | None = Field(
        default=None, description="Low-rank adapters, which are then all that is trained and sent; None trains all."
    )
    prompts: str | tuple[str, ...] = Field(
        default="a photo of {class}",
        description="What a model with a text encoder is told for each class: a text in which {class} stands for the "
        "name of the class, or one text for each class. No label is the empty text.",
    )
    names: tuple[str, ...] = Field(
        default=(), description="The names of the classes, which stand in the prompts; a recipe fills them in."
    )

    @model_validator(mode="after")
    def _names_classes(self) -> Self:
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"names has {len(self.names)} names, but there are {self.classes} classes")
        _ = self.texts  # raises an error where there is no text for each class
        return self

    @property
    def texts(self) -> list[str]:
        """The prompt of each class, and the empty one for no label."""
        return prompts_of(self.prompts, self.names or tuple(map(str, range(self.classes))))

    @property
    def stacking(self) -> Adapter | None:
        """The adapter, where it is of the kind ``stacked``."""
        return self.adapter if self.adapter and self.adapter.kind == "stacked" else None

    @property
    def parts(self) -> PretrainedFolder:
        """The folder, once it has been found to be for such images and classes."""
        folder = located(self.folder, self.revision)
        folder.check(self.size, self.channels, self.classes)
        return folder

    def is_below(self, place: Path) -> bool:
        """Whether its folder is there, and lies below another one.

        Args:
            place: The other folder.
        """
        path = place / self.folder
        return path.is_dir() and path.resolve().is_relative_to(place.resolve())

    @property
    def has_frozen(self) -> bool:
        """Whether parts of it are neither trained nor sent, and must be the same at every silo."""
        parts = self.parts
        return self.adapter is not None or parts.vae is not None or parts.takes_text

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of noised images, or of noised latents."""
        autoencoder = self.parts.autoencoder(self.size)
        return (autoencoder.latent, autoencoder.side, autoencoder.side) if autoencoder else super().noise_shape

    @property
    def frozen_count(self) -> int:
        """How many weights are neither trained nor sent."""
        with torch.device("meta"):
            unet = sum(tensor.numel() for tensor in self.build(seed=0).frozen().values())
        parts = [part for part in (self.parts.vae, self.parts.text_encoder) if part]
        return unet + sum(tensor.numel() for part in parts for tensor in self.parts.tensors(part).values())

    def load_decoder(self, folder: Path, device: str) -> TrainedAutoencoder | None:
        """Load the autoencoder of the pretrained model; it is not in the folder of a generator with adapters."""
        return self.load_autoencoder(device)

    def load_autoencoder(self, device: str = "cpu") -> TrainedAutoencoder | None:
        """Load the frozen autoencoder; None for a model of pixels."""
        parts = self.parts
        spec = parts.autoencoder(self.size)
        return TrainedAutoencoder.from_pretrained(parts.vae, spec, device) if parts.vae and spec else None

    def build(self, seed: int) -> PretrainedModule:
        """Load the network; its weights do not depend on the seed."""
        return PretrainedModule(self)

    def part_of(self, name: str) -> Literal["down", "mid", "up"]:
        """Return where in the U-Net a weight is."""
        return unet_part(name)


class PretrainedModule(nn.Module):
    """A denoiser whose ``state_dict`` has only what is trained: the adapters, or the whole U-Net without them.

    Args:
        spec: The specification.
    """

    def __init__(self, spec: Pretrained) -> None:
        super().__init__()
        self.spec, self.folder = spec, spec.parts
        self.inner = _loaded_unet(self.folder)
        self._add_prompts()
        if spec.adapter:
            spec.adapter.inject(self.inner)
        if self._stacks:
            self._add_deltas()
        names = {name for name, weight in self.named_parameters() if weight.requires_grad}
        self._travelling = names | {name for name in super().state_dict() if name.endswith(DELTA) or not spec.adapter}

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Predict the target, (B, C, H, W).

        Args:
            x_t: Noised images or latents, (B, C, H, W).
            t: Their timesteps from 1 to T, (B,); diffusers counts from 0.
            labels: The class numbers, (B,), or None where there are no classes.
        """
        if not self.folder.takes_text:
            return self.inner(x_t, t - 1, class_labels=labels, return_dict=False)[0]  # type: ignore[no-any-return]
        embedded: Tensor = self.embedded  # type: ignore[assignment] # a buffer
        prompts = embedded[torch.zeros_like(t) if labels is None else labels]
        return self.inner(x_t, t - 1, prompts, return_dict=False)[0]  # type: ignore[no-any-return]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override] # its overloads
        """Return what is trained."""
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in self._travelling}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what is trained; of stacked adapters, the products alone are enough.

        Raises:
            RuntimeError: There are other tensors than those of ``state_dict``.
        """
        wanted = self._travelling
        if self._stacks and not any(name.endswith((A, B)) for name in state_dict):
            wanted = {name for name in wanted if name.endswith(DELTA)}
            self._clear_factors()
        if odd := sorted(wanted ^ set(state_dict)):
            where = "is not in" if odd[0] in wanted else "does not belong into"
            raise RuntimeError(f"{odd[0]} {where} these weights of {self.spec.noun}")
        loaded = super().load_state_dict(state_dict, strict=False, assign=assign)
        self._add_to_base()
        return loaded

    def frozen(self) -> Tensors:
        """Return the tensors of the U-Net that are neither trained nor sent."""
        every = super().state_dict()
        pristine = {f"inner.{name}{BASE}": layer.pristine for name, layer in self._stacked_layers()}
        return {name: tensor for name, tensor in every.items() if name not in self._travelling} | pristine

    @cached_property
    def frozen_hash(self) -> str:
        """The hash of everything that is frozen: of the U-Net, the autoencoder, the text encoder and the prompts."""
        every: dict[str, Any] = {**add_prefix(self.frozen(), "unet.")}
        for part in (self.folder.vae, self.folder.text_encoder):
            every |= add_prefix(self.folder.tensors(part), f"{part.name}.") if part else {}
        return sha256(every | ({"tokens": self.tokens} if self.folder.takes_text else {}))

    def merged(self) -> Tensors:
        """Return the weights of the U-Net without adapters, with their products added, by diffusers' names."""
        adapted = {name for name, _ in self._adapted_layers()}
        weights = {}
        for name, tensor in self.inner.state_dict().items():
            if name.endswith((A, B, DELTA)):
                continue
            plain = name.replace(".base_layer.", ".")
            layer = name.removesuffix(BASE)
            if name.endswith(BASE) and layer in adapted:
                tensor = tensor + self.inner.get_submodule(layer).get_delta_weight("default")
            weights[plain] = tensor
        return weights

    @property
    def _stacks(self) -> bool:
        return self.spec.stacking is not None

    def _adapted_layers(self) -> list[tuple[str, Any]]:
        return [(name, layer) for name, layer in self.inner.named_modules() if hasattr(layer, "lora_A")]

    def _stacked_layers(self) -> list[tuple[str, Any]]:
        return self._adapted_layers() if self._stacks else []

    def _add_prompts(self) -> None:
        """Encode the prompts once; the text encoder is not kept."""
        if not (self.folder.takes_text and self.folder.text_encoder):
            return
        prompts, config = self.spec.texts, self.folder.config(self.folder.text_encoder)
        if _is_real(self.inner):
            tokens, embedded = encoded(self.folder.path, prompts)
        else:
            length = config["max_position_embeddings"]
            tokens, embedded = (
                torch.zeros(len(prompts), length),
                torch.zeros(len(prompts), length, config["hidden_size"]),
            )
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("embedded", embedded, persistent=False)

    def _add_deltas(self) -> None:
        for _, layer in self._adapted_layers():
            weight = layer.base_layer.weight.detach()
            layer.register_buffer(DELTA[1:], torch.zeros_like(weight))
            layer.register_buffer(PRISTINE, weight.clone(), persistent=False)

    def _clear_factors(self) -> None:
        for name, weight in self.named_parameters():
            if name.endswith(B):
                nn.init.zeros_(weight)

    @torch.no_grad()
    def _add_to_base(self) -> None:
        for _, layer in self._stacked_layers():
            layer.base_layer.weight.copy_(layer.pristine + layer.delta)


def _is_real(network: nn.Module) -> bool:
    """Whether the network has values; one that is built to learn of shapes alone has none."""
    return not next(network.parameters()).is_meta


def _loaded_unet(folder: PretrainedFolder) -> Any:
    import diffusers  # its import takes seconds

    kind = getattr(diffusers, folder.unet_config["_class_name"])
    with seeded_globally(0, "pretrained"):
        network = kind.from_config(folder.unet_config)
        if not _is_real(network):
            return network
        return _with_weights(kind, folder)


def _with_weights(kind: Any, folder: PretrainedFolder) -> Any:
    """Load the U-Net, and raise an error where a weight is missing, too many, or of another shape."""
    try:
        network, info = kind.from_pretrained(
            folder.unet, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise folder.error(f"its U-Net cannot be loaded: {' '.join(str(error).split())[:MAX_SHOWN]}") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):
            words = f"{what.replace('_keys', ' weights')}, such as {info[what][0]}"
            raise folder.error(f"its U-Net has {words}: its config.json is of another network")
    return network.float()
