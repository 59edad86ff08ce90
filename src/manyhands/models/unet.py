"""The U-Net of diffusers, as a typed specification and module."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from manyhands.models.base import Denoiser
from manyhands.seed import seeded_globally
from manyhands.spec import Float, Int


class UNet(Denoiser):
    """A U-Net for square images, the denoiser of a diffusion model.

    References:
        U-Net: Convolutional Networks for Biomedical Image Segmentation, Ronneberger et al., 2015, arXiv 1505.04597
        Denoising Diffusion Probabilistic Models, Ho, Jain, Abbeel, 2020, arXiv 2006.11239
    """

    has_parts: ClassVar[bool] = True
    diffusers_folder: ClassVar[str] = "unet"
    can_checkpoint: ClassVar[bool] = True

    kind: Literal["unet"] = Field(default="unet", description="Selects this kind of model.")
    size: Int = Field(ge=4, le=1024, description="The side of the square images in pixels.")
    channels: Int = Field(ge=1, le=16, description="The number of image channels: 1 for grey, 3 for RGB.")
    classes: Int = Field(ge=0, le=100_000, description="The number of classes; 0 for an unconditional model.")
    widths: tuple[Int, ...] = Field(
        default=(32, 64),
        min_length=1,
        max_length=8,
        description="The number of features of each level, from the largest side on; each next level halves it.",
    )
    blocks: Int = Field(default=1, ge=1, le=8, description="The number of residual blocks of each level.")
    attention: bool | tuple[Int, ...] = Field(
        default=False,
        description=(
            "Where self-attention is: nowhere (false), on the smallest level and in the middle block (true), or on a "
            "list of levels, counted from 0 for the largest, and in the middle block."
        ),
    )
    head: Int = Field(default=8, ge=1, le=8192, description="The number of features of an attention head.")
    dropout: Float = Field(default=0.0, ge=0, lt=1, description="The dropout rate of the residual blocks; 0 for none.")
    groups: Int = Field(default=8, ge=1, description="The number of groups of group norm.")
    scale_shift: bool = Field(
        default=False, description="Whether the time embedding scales the features too, instead of only shifting them."
    )
    resnet_sampling: bool = Field(
        default=False,
        description="Whether residual blocks change the side between levels, instead of plain convolutions.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        halvings = len(self.widths) - 1
        if self.size % 2**halvings:
            raise ValueError(
                f"size {self.size} is not a multiple of {2**halvings}: {len(self.widths)} widths halve it as often"
            )
        if bad := [width for width in self.widths if width % self.groups or not 1 <= width <= 8192]:
            raise ValueError(f"width {bad[0]} must be a multiple of groups = {self.groups}, and at most 8192")
        if bad := [level for level in self.attended if level not in range(len(self.widths))]:
            raise ValueError(f"attention names level {bad[0]}, but the levels are 0 to {halvings}")
        if bad := [self.widths[i] for i in {*self.attended, halvings} if self.attention and self.widths[i] % self.head]:
            raise ValueError(
                f"width {bad[0]} is not a multiple of head = {self.head}, the number of features of an attention head"
            )
        return self

    @property
    def attended(self) -> tuple[int, ...]:
        """The levels that have self-attention."""
        if isinstance(self.attention, bool):
            return (len(self.widths) - 1,) * self.attention
        return self.attention

    def build(self, seed: int) -> UNetModule:
        """Build the network with the initial weights of this seed."""
        with seeded_globally(seed, "unet"):
            return UNetModule(self)

    def part_of(self, name: str) -> Literal["down", "mid", "up"]:
        """Return where a weight is: on the way down (with the embeddings), in the middle or on the way up."""
        return unet_part(name)

    def settings(self) -> dict[str, Any]:
        """Return the arguments of diffusers' UNet2DModel. The class number after the last means no label."""
        down = ["AttnDownBlock2D" if i in self.attended else "DownBlock2D" for i in range(len(self.widths))]
        return {
            "sample_size": self.size,
            "in_channels": self.channels,
            "out_channels": self.channels,
            "block_out_channels": self.widths,
            "layers_per_block": self.blocks,
            "down_block_types": tuple(down),
            "up_block_types": tuple(block.replace("Down", "Up") for block in reversed(down)),
            "add_attention": bool(self.attention),
            "attention_head_dim": self.head,
            "dropout": self.dropout,
            "norm_num_groups": self.groups,
            "resnet_time_scale_shift": "scale_shift" if self.scale_shift else "default",
            "downsample_type": "resnet" if self.resnet_sampling else "conv",
            "upsample_type": "resnet" if self.resnet_sampling else "conv",
            "num_class_embeds": self.classes + 1 if self.classes else None,
        }


def unet_part(name: str) -> Literal["down", "mid", "up"]:
    """Return where in a U-Net of diffusers a weight is: embeddings are on the way down.

    Args:
        name: The name of the weight.
    """
    name = name.removeprefix("inner.")
    if name.startswith("mid_block"):
        return "mid"
    return "up" if name.startswith(("up_blocks", "conv_norm_out", "conv_out")) else "down"


class UNetModule(nn.Module):
    """A denoiser: noised images, timesteps 1 to T and labels in, the predicted target out."""

    def __init__(self, spec: UNet) -> None:
        super().__init__()
        from diffusers import UNet2DModel  # its import takes seconds

        self.inner = UNet2DModel(**spec.settings())

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Predict the target, (B, C, H, W).

        Args:
            x_t: Noised images, (B, C, H, W).
            t: Their timesteps from 1 to T, (B,); diffusers counts from 0.
            labels: The class numbers, (B,), or None for an unconditional model.
        """
        out: Tensor = self.inner(x_t, t - 1, class_labels=labels, return_dict=False)[0]
        return out
