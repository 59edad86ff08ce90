"""A U-Net on the latents of a frozen autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from manyhands.models.autoencoder import Autoencoder, TrainedAutoencoder
from manyhands.models.base import Denoiser
from manyhands.models.unet import UNet
from manyhands.spec import Float, Int

if TYPE_CHECKING:
    from pathlib import Path

    from manyhands.models.unet import UNetModule


class Latent(Denoiser):
    """A latent diffusion model: only the U-Net is trained, and exchanged in rounds.

    References:
        High-Resolution Image Synthesis with Latent Diffusion Models, Rombach et al., 2022, arXiv 2112.10752
    """

    has_parts: ClassVar[bool] = True
    diffusers_folder: ClassVar[str] = "unet"
    can_checkpoint: ClassVar[bool] = True

    kind: Literal["latent"] = Field(default="latent", description="Selects this kind of model.")
    size: Int = Field(ge=4, le=2048, description="The side of the square images in pixels.")
    channels: Int = Field(ge=1, le=16, description="The number of image channels: 1 for grey, 3 for RGB.")
    classes: Int = Field(ge=0, le=100_000, description="The number of classes; 0 for an unconditional model.")
    folder: str = Field(
        description=(
            "The folder of the trained autoencoder in the layout of diffusers, such as the `model/` folder of a run "
            "that trained one."
        )
    )
    autoencoder: Autoencoder = Field(description="The autoencoder in that folder; size and channels are filled in.")
    unet: UNet = Field(description="The U-Net; size, channels and classes are filled in for the latents.")
    scale: Float | None = Field(
        default=None,
        ge=1e-6,
        le=1e6,
        description=(
            "What latents are multiplied by before the U-Net sees them; None for a shift and a scale of each channel, "
            "on which silos agree, so that the latents of all together have mean 0 and deviation 1."
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, fields: Any) -> Any:
        """Fill in that the autoencoder is for the images, and the U-Net for the latents."""
        if not isinstance(fields, dict):
            return fields
        shape = {name: fields[name] for name in ("size", "channels", "classes") if name in fields}
        first, unet = fields.get("autoencoder", {}), fields.get("unet", {})
        if isinstance(first, dict):
            first = {name: shape[name] for name in ("size", "channels") if name in shape} | first
        try:
            autoencoder = Autoencoder.model_validate(first)
            shape |= {"size": autoencoder.side, "channels": autoencoder.latent}
        except ValidationError:
            pass  # the error is raised when the field itself is validated
        return fields | {"autoencoder": first, "unet": shape | unet if isinstance(unet, dict) else unet}

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        first, unet = self.autoencoder, self.unet
        if (first.size, first.channels) != (self.size, self.channels):
            raise ValueError(
                f"autoencoder is for images of {first.channels} x {first.size}, not {self.channels} x {self.size}"
            )
        if (unet.size, unet.channels, unet.classes) != (first.side, first.latent, self.classes):
            raise ValueError(
                f"unet is for {unet.channels} x {unet.size} and {unet.classes} classes, but the latents are "
                f"{first.latent} x {first.side} and there are {self.classes} classes"
            )
        return self

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of noised latents."""
        return self.unet.noise_shape

    def load_decoder(self, folder: Path, device: str) -> TrainedAutoencoder:
        """Load the autoencoder of a stored generator."""
        return TrainedAutoencoder.from_pretrained(folder / "vae", self.autoencoder, device)

    def load(self) -> TrainedAutoencoder:
        """Load the autoencoder from its folder."""
        return TrainedAutoencoder.from_pretrained(self.folder, self.autoencoder)

    def build(self, seed: int) -> UNetModule:
        """Build the U-Net with the initial weights of this seed."""
        return self.unet.build(seed)

    def part_of(self, name: str) -> Literal["down", "mid", "up"]:
        """Return where in the U-Net a weight is."""
        return self.unet.part_of(name)
