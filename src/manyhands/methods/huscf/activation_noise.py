"""Clipping and noise for the activations that a silo's head of the discriminator sends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from manyhands.methods.huscf.operations import ADVERSARIAL_FORWARD, FAKE_FORWARD, REAL_FORWARD
from manyhands.privacy.noise import normal
from manyhands.spec import Float, Spec
from manyhands.tensors import per_image

if TYPE_CHECKING:
    from manyhands.silos.silo import Silo

GUARDED = (FAKE_FORWARD, REAL_FORWARD, ADVERSARIAL_FORWARD)
"""All forward passes of the discriminator: if only real images got noise, it would recognise them by the noise."""


class Guard(Spec):
    """Clips the activations of each image, then adds Gaussian noise to each number.

    This is not differential privacy: normalisation over a batch makes the activations of one image depend on the
    others, and the head's weights, which were trained on all images, are sent too.
    """

    clip: Float = Field(gt=0, le=1e9, description="The largest L2 norm that the activations of one image may have.")
    noise: Float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="The standard deviation of the noise on each number, as a multiple of clip; 0 adds none.",
    )

    def clipped(self, x: Tensor) -> Tensor:
        """Return the activations clipped but without noise, which is the most that an attacker could recover.

        Args:
            x: The activations of a batch, of shape (B, C, H, W).
        """
        norms = x.flatten(1).norm(dim=1).clamp(min=1e-12)
        return x * per_image((self.clip / norms).clamp(max=1), x)

    def hidden(self, x: Tensor, silo: Silo) -> Tensor:
        """Return what is sent of activations: clipped, and with noise where there is any.

        The noise is drawn from the silo's secret and from the activations: other activations get other noise.

        Args:
            x: The activations of a batch, of shape (B, C, H, W).
            silo: The silo whose secret the noise is drawn from.
        """
        clipped = self.clipped(x)
        if not self.noise:
            return clipped
        key = f"{silo.noise_secret}\nguard\n".encode() + clipped.detach().cpu().contiguous().numpy().tobytes()
        noise = torch.from_numpy(normal(key, x.numel())).to(x).reshape(x.shape)
        return clipped + self.noise * self.clip * noise
