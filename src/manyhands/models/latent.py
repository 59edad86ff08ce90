"""A U-Net that works on the latents of a frozen autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from manyhands.models.autoencoder import Autoencoder, TrainedAutoencoder
from manyhands.models.unet import UNet
from manyhands.spec import Float, Int, Spec

if TYPE_CHECKING:
    from manyhands.models.unet import UNetModule


class Latent(Spec):
    """A latent diffusion model: only the U-Net is trained, and sent in rounds.

    ``folder`` holds the ``autoencoder``, in the layout of diffusers: the ``model/`` of a run that trained one, or one
    from elsewhere. ``scale`` is what latents are multiplied by before the U-Net sees them; without it, silos agree on
    1 / the deviation of all their latents together.

    References:
        High-Resolution Image Synthesis with Latent Diffusion Models, Rombach et al., 2022, arXiv 2112.10752
    """

    kind: Literal["latent"] = "latent"
    size: Int = Field(ge=4, le=2048)
    channels: Int = Field(ge=1, le=16)
    classes: Int = Field(ge=0, le=100_000)
    folder: str
    autoencoder: Autoencoder
    unet: UNet
    scale: Float | None = Field(default=None, ge=1e-6, le=1e6)

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, told: Any) -> Any:
        """The autoencoder is for the images, the U-Net for the latents."""
        if not isinstance(told, dict):
            return told
        form = {name: told[name] for name in ("size", "channels", "classes") if name in told}
        first, unet = told.get("autoencoder", {}), told.get("unet", {})
        if isinstance(first, dict):
            first = {name: form[name] for name in ("size", "channels") if name in form} | first
        try:
            made = Autoencoder.model_validate(first)
            form |= {"size": made.side, "channels": made.latent}
        except ValidationError:
            pass  # told when it is looked at in its own place
        return told | {"autoencoder": first, "unet": form | unet if isinstance(unet, dict) else unet}

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        first, unet = self.autoencoder, self.unet
        if (first.size, first.channels) != (self.size, self.channels):
            raise ValueError(f"autoencoder is for {first.channels} x {first.size}, not {self.channels} x {self.size}")
        if (unet.size, unet.channels, unet.classes) != (first.side, first.latent, self.classes):
            raise ValueError(
                f"unet is for {unet.channels} x {unet.size} and {unet.classes} classes, latents are {first.latent} x "
                f"{first.side} and there are {self.classes}"
            )
        return self

    def load(self) -> TrainedAutoencoder:
        """The autoencoder of the folder."""
        return TrainedAutoencoder.from_pretrained(self.folder, self.autoencoder)

    def build(self, seed: int) -> UNetModule:
        """The U-Net with fresh weights."""
        return self.unet.build(seed)

    def part_of(self, name: str) -> Literal["down", "mid", "up"]:
        """Where in the U-Net a weight is."""
        return self.unet.part_of(name)
