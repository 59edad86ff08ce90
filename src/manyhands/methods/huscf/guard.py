"""What a silo takes off what its head of the discriminator makes, before it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from manyhands.privacy.noise import normal
from manyhands.spec import Float, Spec

if TYPE_CHECKING:
    from manyhands.silos.silo import Silo

GUARDED = ("made", "real", "fool")
"""All that the discriminator judges: were real images alone noised, it would tell them by their noise."""


class Guard(Spec):
    """The activations of each image are clipped to the norm ``clip``; then noise is added to each number.

    ``noise`` is its deviation, as a share of ``clip``. It is no differential privacy: norms over a batch bind the
    activations of one image to those of the others, and the head's weights, which were trained on all, are sent too.
    """

    clip: Float = Field(gt=0, le=1e9)
    noise: Float = Field(default=0.0, ge=0, le=1e6)

    def clipped(self, x: Tensor) -> Tensor:
        """Without the noise, which is all that an attacker can do after it."""
        norms = x.flatten(1).norm(dim=1).clamp(min=1e-12)
        kept: Tensor = x * (self.clip / norms).clamp(max=1).reshape(-1, *[1] * (x.dim() - 1))
        return kept

    def hidden(self, x: Tensor, silo: Silo) -> Tensor:
        """What is sent of it; its noise is drawn from the silo's secret and from x: other activations, other noise."""
        clipped = self.clipped(x)
        if not self.noise:
            return clipped
        key = f"{silo.noise_secret}\nguard\n".encode() + clipped.detach().cpu().contiguous().numpy().tobytes()
        drawn = torch.from_numpy(normal(key, x.numel())).to(x).reshape(x.shape)
        return clipped + self.noise * self.clip * drawn
