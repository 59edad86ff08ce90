"""The U-Net of diffusers, behind one typed module."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from manyhands.seed import seeded_globally
from manyhands.spec import Float, Int, Spec


class UNet(Spec):
    """A U-Net for square images. ``classes`` 0 makes it unconditional.

    ``attention`` is on the last level and in the middle if true, on those levels (counted from 0, the largest) and in
    the middle if it is a list of them. ``head`` is the width of an attention head. ``scale_shift`` lets time scale the
    features too, ``resnet_sampling`` halves and doubles by residual blocks.

    References:
        U-Net: Convolutional Networks for Biomedical Image Segmentation, Ronneberger et al., 2015, arXiv 1505.04597
        Denoising Diffusion Probabilistic Models, Ho, Jain, Abbeel, 2020, arXiv 2006.11239
    """

    kind: Literal["unet"] = "unet"
    size: Int = Field(ge=4, le=1024)
    channels: Int = Field(ge=1, le=16)
    classes: Int = Field(ge=0, le=100_000)
    widths: tuple[Int, ...] = Field(default=(32, 64), min_length=1, max_length=8)
    blocks: Int = Field(default=1, ge=1, le=8)
    attention: bool | tuple[Int, ...] = False
    head: Int = Field(default=8, ge=1, le=8192)
    dropout: Float = Field(default=0.0, ge=0, lt=1)
    groups: Int = Field(default=8, ge=1)
    scale_shift: bool = False
    resnet_sampling: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        halvings = len(self.widths) - 1
        if self.size % 2**halvings:
            raise ValueError(f"size {self.size} cannot be halved {halvings} times, as {len(self.widths)} widths ask")
        if bad := [width for width in self.widths if width % self.groups or not 1 <= width <= 8192]:
            raise ValueError(f"width {bad[0]} is no multiple of groups = {self.groups}, from 1 to 8192")
        if bad := [level for level in self.attended if level not in range(len(self.widths))]:
            raise ValueError(f"attention on level {bad[0]}, there are levels 0 to {halvings}")
        if bad := [self.widths[i] for i in {*self.attended, halvings} if self.attention and self.widths[i] % self.head]:
            raise ValueError(f"width {bad[0]} is no multiple of head = {self.head}, the width of an attention head")
        return self

    @property
    def attended(self) -> tuple[int, ...]:
        """The levels that have attention."""
        if isinstance(self.attention, bool):
            return (len(self.widths) - 1,) * self.attention
        return self.attention

    def build(self, seed: int) -> UNetModule:
        """The network with fresh weights."""
        with seeded_globally(seed, "unet"):
            return UNetModule(self)

    def part_of(self, name: str) -> Literal["down", "mid", "up"]:
        """Where a weight is: on the way down (with what tells time and class), in the middle, or on the way up."""
        name = name.removeprefix("inner.")
        if name.startswith("mid_block"):
            return "mid"
        return "up" if name.startswith(("up_blocks", "conv_norm_out", "conv_out")) else "down"

    def settings(self) -> dict[str, Any]:
        """The arguments of diffusers' UNet2DModel. Its class after the last one means: no label."""
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


class UNetModule(nn.Module):
    """A denoiser: noised images, steps 1 to T and labels in, the target out."""

    def __init__(self, spec: UNet) -> None:
        super().__init__()
        from diffusers import UNet2DModel  # it takes seconds to import

        self.inner = UNet2DModel(**spec.settings())

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Diffusers counts the steps from 0, and calls the noise after one step 0."""
        out: Tensor = self.inner(x_t, t - 1, class_labels=labels, return_dict=False)[0]
        return out
