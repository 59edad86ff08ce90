"""The diffusion transformer of diffusers, as a typed specification and module."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from manyhands.models.base import Denoiser
from manyhands.seed import seeded_globally
from manyhands.spec import Float, Int


class DiT(Denoiser):
    """A transformer on patches of square images, the denoiser of a diffusion model.

    It starts as in the paper: each block changes nothing, and the output is 0.

    References:
        Scalable Diffusion Models with Transformers, Peebles, Xie, 2022, arXiv 2212.09748
    """

    diffusers_folder: ClassVar[str] = "transformer"
    can_checkpoint: ClassVar[bool] = True

    kind: Literal["dit"] = Field(default="dit", description="Selects this kind of model.")
    size: Int = Field(ge=4, le=1024, description="The side of the square images in pixels.")
    channels: Int = Field(ge=1, le=16, description="The number of image channels: 1 for grey, 3 for RGB.")
    classes: Int = Field(ge=0, le=100_000, description="The number of classes; 0 for an unconditional model.")
    patch: Int = Field(default=2, ge=1, le=64, description="The side of a patch in pixels; a patch is a token.")
    width: Int = Field(default=128, ge=8, le=8192, description="The number of features of a token.")
    depth: Int = Field(default=4, ge=1, le=64, description="The number of transformer blocks.")
    head: Int = Field(default=32, ge=2, le=8192, description="The number of features of an attention head.")
    dropout: Float = Field(default=0.0, ge=0, lt=1, description="The dropout rate of the blocks; 0 for none.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size % self.patch:
            raise ValueError(f"size {self.size} is not a multiple of patch = {self.patch}")
        if self.width % self.head:
            raise ValueError(
                f"width {self.width} is not a multiple of head = {self.head}, the number of features of an attention "
                "head"
            )
        if self.width % 4:
            raise ValueError(f"width {self.width} is not a multiple of 4, which the embedding of positions needs")
        return self

    def build(self, seed: int) -> DiTModule:
        """Build the network with the initial weights of this seed."""
        with seeded_globally(seed, "dit"):
            return DiTModule(self)

    def settings(self) -> dict[str, Any]:
        """Return the arguments of diffusers' DiTTransformer2DModel. The class number after the last means no label."""
        return {
            "sample_size": self.size,
            "patch_size": self.patch,
            "in_channels": self.channels,
            "num_layers": self.depth,
            "num_attention_heads": self.width // self.head,
            "attention_head_dim": self.head,
            "dropout": self.dropout,
            "num_embeds_ada_norm": max(self.classes, 1),
        }


class DiTModule(nn.Module):
    """A denoiser: noised images, timesteps 1 to T and labels in, the predicted target out."""

    def __init__(self, spec: DiT) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel  # its import takes seconds

        self.inner = DiTTransformer2DModel(**spec.settings())
        for block in self.inner.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0  # the objective hides labels, from seeded numbers
            _start_at_zero(block.norm1.linear)
        _start_at_zero(self.inner.proj_out_1)
        _start_at_zero(self.inner.proj_out_2)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Predict the target, (B, C, H, W).

        Args:
            x_t: Noised images, (B, C, H, W).
            t: Their timesteps from 1 to T, (B,); diffusers counts from 0.
            labels: The class numbers, (B,), or None for an unconditional model.
        """
        known = torch.zeros(len(x_t), dtype=torch.long, device=x_t.device) if labels is None else labels
        out: Tensor = self.inner(x_t, timestep=t - 1, class_labels=known, return_dict=False)[0]
        return out


def _start_at_zero(layer: Any) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
