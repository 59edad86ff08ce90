"""How much attackers train, and on how many images they try it."""

from __future__ import annotations

from dataclasses import dataclass

from manyhands.silos.training import Training

MAX_RECONSTRUCTED_IMAGES = 256
"""The maximum number of images that reconstruction attacks try."""


@dataclass(frozen=True)
class Effort:
    """How much the attackers train on their public images.

    Args:
        denoiser: Training steps of the denoiser.
        regressor: Training steps of the regressor.
        classifier: Training steps of the classifier of noised images.
        inverter: Training steps of the network that inverts the head of a cut GAN.
        descent: The maximum number of steps of gradient descent on the input of such a head.
        widths: The channels of the attackers' U-Nets.
        batch: The batch size.
        learning_rate: The learning rate of the first step; it falls to a twentieth of that.
    """

    denoiser: int = 400
    regressor: int = 400
    classifier: int = 1000
    inverter: int = 600
    descent: int = 200
    widths: tuple[int, ...] = (16, 32)
    batch: int = 64
    learning_rate: float = 2e-3

    def training(self, steps: int) -> Training:
        """Training for this many steps, with a falling learning rate."""
        fields = {"batch": self.batch, "steps": steps, "learning_rate": self.learning_rate, "learning_rate_end": 0.05}
        return Training.model_validate(fields)
