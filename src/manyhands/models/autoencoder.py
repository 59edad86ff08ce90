"""The autoencoder of a latent diffusion model: images to smaller latents, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from manyhands.errors import RecipeError, RunFolderError
from manyhands.files.strict_json import finite_json
from manyhands.files.write import replace_folder
from manyhands.seed import seeded_globally
from manyhands.spec import Float, Int, Spec
from manyhands.tensors import Tensors, find_not_finite, snapshot

FACTS = "manyhands.json"
BESIDE_FORM = {"sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"}
"""What diffusers keeps with an autoencoder and its network does not depend on."""
DRAWS_NOTHING = (
    "an autoencoder was trained, which draws nothing of its own: name its folder in a recipe with "
    "method.model.kind = 'latent'"
)


class Autoencoder(Spec):
    """Square images to ``latent`` channels of a square whose side is halved between each two of the ``widths``.

    It learns the absolute error of what comes back, and ``kl`` times the divergence of an image's latents from a
    normal distribution.

    References:
        Auto-Encoding Variational Bayes, Kingma, Welling, 2014, arXiv 1312.6114
        High-Resolution Image Synthesis with Latent Diffusion Models, Rombach et al., 2022, arXiv 2112.10752
    """

    kind: Literal["autoencoder"] = "autoencoder"
    size: Int = Field(ge=4, le=2048)
    channels: Int = Field(ge=1, le=16)
    latent: Int = Field(default=4, ge=1, le=16)
    widths: tuple[Int, ...] = Field(default=(32, 64), min_length=2, max_length=6)
    blocks: Int = Field(default=1, ge=1, le=8)
    attention: bool = False
    groups: Int = Field(default=8, ge=1)
    kl: Float = Field(default=1e-6, ge=0)

    @property
    def classes(self) -> int:
        """It is told of none."""
        return 0

    @property
    def side(self) -> int:
        """The side of the latents."""
        return self.size >> len(self.widths) - 1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size % 2 ** (len(self.widths) - 1) or self.side < 2:
            raise ValueError(f"size {self.size} cannot be halved {len(self.widths) - 1} times, as the widths ask")
        if bad := [width for width in self.widths if width % self.groups or not 1 <= width <= 8192]:
            raise ValueError(f"width {bad[0]} is no multiple of groups = {self.groups}, from 1 to 8192")
        return self

    def build(self, seed: int) -> AutoencoderModule:
        """The network with fresh weights."""
        with seeded_globally(seed, "autoencoder"):
            return AutoencoderModule(self)

    def part_of(self, name: str) -> Literal["down", "up"]:
        """The encoder is the way down, the decoder the way up."""
        return "down" if name.startswith(("inner.encoder", "inner.quant_conv")) else "up"

    def loss(self, network: AutoencoderModule, x: Tensor, rng: torch.Generator) -> Tensor:
        """The mean absolute error of what comes back from noisy latents, and the divergence of these."""
        mean, log_variance = network.moments(x)
        noise = torch.randn(mean.shape, generator=rng, device=x.device)
        back = network.decode(mean + (log_variance / 2).exp() * noise)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean() / 2
        return (back - x).abs().mean() + self.kl * divergence

    def form(self) -> dict[str, Any]:
        """All that the config.json of its weights must say, where it says it."""
        with torch.device("meta"):
            told: dict[str, Any] = json.loads(self.build(seed=0).inner.to_json_string())
        return {name: value for name, value in told.items() if not name.startswith("_") and name not in BESIDE_FORM}

    def settings(self) -> dict[str, Any]:
        """The arguments of diffusers' AutoencoderKL."""
        levels = len(self.widths)
        return {
            "in_channels": self.channels,
            "out_channels": self.channels,
            "latent_channels": self.latent,
            "block_out_channels": self.widths,
            "layers_per_block": self.blocks,
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "norm_num_groups": self.groups,
            "mid_block_add_attention": self.attention,
        }


class AutoencoderModule(nn.Module):
    """Encoder and decoder; ``moments`` are the mean and the logarithm of the variance of an image's latents."""

    def __init__(self, spec: Autoencoder) -> None:
        super().__init__()
        from diffusers import AutoencoderKL  # it takes seconds to import

        self.inner = AutoencoderKL(sample_size=spec.size, **spec.settings())

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the latents of images in [-1, 1]."""
        told = self.inner.encode(x).latent_dist
        return told.mean, told.logvar

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents."""
        out: Tensor = self.inner.decode(latents, return_dict=False)[0]
        return out


@dataclass(frozen=True)
class TrainedAutoencoder:
    """An autoencoder with its weights; kept in the layout of diffusers."""

    model: Autoencoder
    weights: Tensors
    device: str = "cpu"
    ema: float = 0.0

    def reconstruct(self, images: Tensor, batch: int = 256) -> Tensor:
        """What is left of images in [-1, 1] after the latents, in [-1, 1]."""
        parts = (self._reconstruct(part.to(self.device)).cpu() for part in images.split(batch))
        return torch.cat(list(parts))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents, as they are: they may lie outside of [-1, 1]."""
        return self.network.decode(latents)

    def save(self, folder: Path | str) -> None:
        """Write the folder that diffusers' AutoencoderKL and ``from_pretrained`` load."""
        with replace_folder(Path(folder)) as fresh:
            self.write(fresh)

    def write(self, folder: Path, scale: float = 1.0) -> None:
        """Write into a new folder; ``scale`` is what latents are multiplied by before anything learns from them."""
        self.network.inner.register_to_config(scaling_factor=scale)
        self.network.inner.save_pretrained(folder)
        facts = {"model": self.model.model_dump(mode="json"), "ema": self.ema}
        (folder / FACTS).write_text(finite_json(facts, indent=1))

    @classmethod
    def from_pretrained(cls, folder: Path | str, model: Autoencoder, device: str = "cpu", ema: float = 0.0) -> Self:
        """Load a folder of this model that we or diffusers wrote; of another one, an error says which."""
        from diffusers import AutoencoderKL

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            near = [part for part in ("model", "vae") if (folder / part / "config.json").is_file()]
            hint = (
                f"; did you mean {folder / near[0]}?"
                if near
                else ("; a run of a recipe with method.model.kind = 'autoencoder' leaves one in its folder's model/")
            )
            raise RunFolderError(f"{folder}: holds no autoencoder in the layout of diffusers{hint}")
        try:
            config = json.loads((folder / "config.json").read_text())
            for name, told in model.form().items():
                found = config.get(name, told)
                if found != told:
                    raise RecipeError(f"{folder}: is an autoencoder of {name} = {found}, the recipe says {told}")
            inner = AutoencoderKL.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
            )
            weights = {f"inner.{name}": tensor.float() for name, tensor in snapshot(inner.state_dict()).items()}
            loaded = cls(model, weights, device, ema)
            _ = loaded.network  # a file of other weights is noticed here
        except (OSError, ValueError, AttributeError, RuntimeError) as error:
            raise RunFolderError(f"{folder}: this autoencoder cannot be loaded: {error}") from None
        if bad := find_not_finite(loaded.weights):
            raise RunFolderError(f"{folder}: this autoencoder cannot be used: {bad} is not finite")
        return loaded

    @cached_property
    def network(self) -> AutoencoderModule:
        """Ready to encode and decode, never to be trained."""
        network = self.model.build(seed=0)
        network.load_state_dict(self.weights)
        return network.to(self.device).eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def _reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.network.moments(images)[0]).clamp(-1, 1)
