"""The autoencoder of a latent diffusion model: it encodes images to smaller latents and decodes them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from manyhands.errors import RecipeError, RunFolderError
from manyhands.files.strict_json import finite_json
from manyhands.files.write import replace_folder
from manyhands.models.base import Model
from manyhands.seed import seeded_globally
from manyhands.spec import Float, Int
from manyhands.tensors import Tensors, find_not_finite, snapshot

FACTS = "manyhands.json"
NOT_ARCHITECTURE = {"sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"}
"""Entries of the config.json of diffusers on which the network does not depend."""
ENCODED, DECODED = "inner.quant_conv", "inner.post_quant_conv"
"""The last layer of the encoder and the first one of the decoder; both mix the channels of each pixel."""
CANNOT_SAMPLE = (
    "an autoencoder was trained, which cannot sample by itself: name its folder in a recipe with "
    "method.model.kind = 'latent'"
)


def stored_facts(folder: Path) -> dict[str, Any]:
    """Read the specifications of a stored model; it is a ``ValueError`` where they are none."""
    facts = json.loads((folder / FACTS).read_text())
    if not (isinstance(facts, dict) and isinstance(facts.get("model"), dict)):
        raise ValueError(f"{FACTS} holds no table 'model'")
    return facts


class Autoencoder(Model):
    """An autoencoder of square images, whose latents have a smaller side and ``latent`` channels.

    Its loss is the absolute error of the reconstruction, plus ``kl`` times the divergence of an image's latents from
    a standard normal distribution.

    References:
        Auto-Encoding Variational Bayes, Kingma, Welling, 2014, arXiv 1312.6114
        High-Resolution Image Synthesis with Latent Diffusion Models, Rombach et al., 2022, arXiv 2112.10752
    """

    weights_of: ClassVar[str] = "its autoencoder"
    can_checkpoint: ClassVar[bool] = True

    kind: Literal["autoencoder"] = Field(default="autoencoder", description="Selects this kind of model.")
    size: Int = Field(ge=4, le=2048, description="The side of the square images in pixels.")
    channels: Int = Field(ge=1, le=16, description="The number of image channels: 1 for grey, 3 for RGB.")
    latent: Int = Field(default=4, ge=1, le=16, description="The number of channels of the latents.")
    widths: tuple[Int, ...] = Field(
        default=(32, 64),
        min_length=2,
        max_length=6,
        description="The number of features of each level, from the largest side on; each next level halves it.",
    )
    blocks: Int = Field(default=1, ge=1, le=8, description="The number of residual blocks of each level.")
    attention: bool = Field(default=False, description="Whether the middle block has self-attention.")
    groups: Int = Field(default=8, ge=1, description="The number of groups of group norm.")
    kl: Float = Field(
        default=1e-6,
        ge=0,
        description="The weight of the divergence of the latents from a standard normal distribution; 0 for none.",
    )

    @property
    def classes(self) -> int:
        """The number of classes, always 0: it takes no labels."""
        return 0

    @property
    def noun(self) -> str:
        """What errors call it."""
        return "an autoencoder"

    @property
    def side(self) -> int:
        """The side of the square latents."""
        return self.size >> len(self.widths) - 1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        factor = 2 ** (len(self.widths) - 1)
        if self.size % factor or self.side < 2:
            expected = f"a multiple of {factor} and at least {2 * factor}, for {len(self.widths)} widths"
            raise ValueError(f"size {self.size} should be {expected}")
        if bad := [width for width in self.widths if width % self.groups or not 1 <= width <= 8192]:
            raise ValueError(f"width {bad[0]} must be a multiple of groups = {self.groups}, and at most 8192")
        return self

    def build(self, seed: int) -> AutoencoderModule:
        """Build the network with the initial weights of this seed."""
        with seeded_globally(seed, "autoencoder"):
            return AutoencoderModule(self)

    def part_of(self, name: str) -> Literal["down", "up"]:
        """Return where a weight is: the encoder is the way down, the decoder the way up."""
        return "down" if name.startswith(("inner.encoder", "inner.quant_conv")) else "up"

    def loss(self, network: AutoencoderModule, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return the mean absolute error of the reconstruction plus the weighted divergence of the latents.

        Args:
            network: The autoencoder.
            x: Images in [-1, 1], (B, C, H, W).
            rng: The random numbers that sample the latents.
        """
        mean, log_variance = network.moments(x)
        noise = torch.randn(mean.shape, generator=rng, device=x.device)
        back = network.decode(mean + (log_variance / 2).exp() * noise)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean() / 2
        return (back - x).abs().mean() + self.kl * divergence

    def architecture(self) -> dict[str, Any]:
        """Return the entries that the config.json of its weights must have, where it has them."""
        with torch.device("meta"):
            config: dict[str, Any] = json.loads(self.build(seed=0).inner.to_json_string())
        return {
            name: value for name, value in config.items() if not name.startswith("_") and name not in NOT_ARCHITECTURE
        }

    def settings(self) -> dict[str, Any]:
        """Return the arguments of diffusers' AutoencoderKL."""
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
    """The encoder and the decoder as one module."""

    def __init__(self, spec: Autoencoder) -> None:
        super().__init__()
        from diffusers import AutoencoderKL  # its import takes seconds

        self.inner = AutoencoderKL(sample_size=spec.size, **spec.settings())

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images in [-1, 1], (B, C, H, W), to the mean and the log variance of their latents."""
        distribution = self.inner.encode(x).latent_dist
        return distribution.mean, distribution.logvar

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to images, (B, C, H, W)."""
        out: Tensor = self.inner.decode(latents, return_dict=False)[0]
        return out


@dataclass(frozen=True)
class TrainedAutoencoder:
    """An autoencoder with its weights, stored in the layout of diffusers.

    Args:
        model: The specification.
        weights: The weights by name.
        device: The device to work on.
        ema: The decay of the average over rounds that the weights are; 0 for the weights of the last round.
    """

    model: Autoencoder
    weights: Tensors
    device: str = "cpu"
    ema: float = 0.0

    def reconstruct(self, images: Tensor, batch: int = 256) -> Tensor:
        """Encode and decode images in [-1, 1], (N, C, H, W), ``batch`` at once; the result is clamped to [-1, 1]."""
        parts = (self._reconstruct(part.to(self.device)).cpu() for part in images.split(batch))
        return torch.cat(list(parts))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to images, (B, C, H, W), which are not clamped to [-1, 1]."""
        return self.network.decode(latents)

    def normalized(self, shift: Tensor, scale: Tensor) -> Self:
        """Return the autoencoder whose latents are ``(z - shift) * scale`` where those of this one are z.

        It decodes them to the same images: the last layer of the encoder and the first one of the decoder are linear
        in each pixel, so both take in the shift and the scale.

        Args:
            shift: What is subtracted from each channel, (C,).
            scale: What each channel is multiplied by then, (C,).
        """
        shift, scale = shift.double(), scale.double()
        factors = torch.cat([scale, torch.ones_like(scale)])  # of the means, then of the log variances
        offsets = torch.cat([-shift * scale, 2 * scale.log()])
        weight, bias = (self.weights[f"{ENCODED}.{name}"].double() for name in ("weight", "bias"))
        back, back_bias = (self.weights[f"{DECODED}.{name}"].double() for name in ("weight", "bias"))
        changed = {
            f"{ENCODED}.weight": weight * factors[:, None, None, None],
            f"{ENCODED}.bias": bias * factors + offsets,
            f"{DECODED}.weight": back / scale[:, None, None],
            f"{DECODED}.bias": back_bias + back[:, :, 0, 0] @ shift,
        }
        return replace(self, weights=self.weights | {name: tensor.float() for name, tensor in changed.items()})

    def save(self, folder: Path | str) -> None:
        """Write a folder that diffusers' AutoencoderKL and ``from_pretrained`` load; an older one is replaced."""
        with replace_folder(Path(folder)) as fresh:
            self.write(fresh)

    def write(self, folder: Path, scale: float = 1.0) -> None:
        """Write into a new folder; ``scale`` is what latents are multiplied by before a model is trained on them."""
        self.network.inner.register_to_config(scaling_factor=scale)
        self.network.inner.save_pretrained(folder)
        facts = {"model": self.model.model_dump(mode="json"), "ema": self.ema}
        (folder / FACTS).write_text(finite_json(facts, indent=1))

    @classmethod
    def from_pretrained(cls, folder: Path | str, model: Autoencoder, device: str = "cpu", ema: float = 0.0) -> Self:
        """Load a folder that ``save`` or diffusers wrote.

        Args:
            folder: The folder.
            model: The specification that it must fit.
            device: The device to work on.
            ema: The decay of the average over rounds that the weights are; 0 for the weights of the last round.

        Raises:
            RecipeError: The folder holds an autoencoder of another architecture.
            RunFolderError: The folder holds no autoencoder, or one that cannot be loaded.
        """
        from diffusers import AutoencoderKL

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            near = [part for part in ("model", "vae") if (folder / part / "config.json").is_file()]
            hint = (
                f"; did you mean {folder / near[0]}?"
                if near
                else ("; a run of a recipe with method.model.kind = 'autoencoder' writes one to model/ in its folder")
            )
            raise RunFolderError(f"{folder}: holds no autoencoder in the layout of diffusers{hint}")
        try:
            config = json.loads((folder / "config.json").read_text())
            for name, expected in model.architecture().items():
                actual = config.get(name, expected)
                if actual != expected:
                    raise RecipeError(
                        f"{folder}: is an autoencoder with {name} = {actual}, but the recipe says {expected}"
                    )
            inner = AutoencoderKL.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
            )
            weights = {f"inner.{name}": tensor.float() for name, tensor in snapshot(inner.state_dict()).items()}
            loaded = cls(model, weights, device, ema)
            _ = loaded.network  # raises an error if the weights do not fit the model
        except (OSError, ValueError, AttributeError, RuntimeError) as error:
            raise RunFolderError(f"{folder}: this autoencoder cannot be loaded: {error}") from None
        if bad := find_not_finite(loaded.weights):
            raise RunFolderError(f"{folder}: this autoencoder cannot be used: {bad} is not finite")
        return loaded

    @cached_property
    def network(self) -> AutoencoderModule:
        """The network with its weights, in evaluation mode and frozen."""
        network = self.model.build(seed=0)
        network.load_state_dict(self.weights)
        return network.to(self.device).eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def _reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.network.moments(images)[0]).clamp(-1, 1)
