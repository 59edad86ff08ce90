"""What the methods have in common that train one denoiser at each silo."""

from __future__ import annotations

import math
from abc import ABC

import torch
from pydantic import Field
from torch import Tensor

from manyhands.diffusion.objective import Diffusion
from manyhands.message import Message
from manyhands.methods.method import Method
from manyhands.models.generator import Generator
from manyhands.models.unet import UNet
from manyhands.silo import Silo
from manyhands.tensors import Tensors, finite
from manyhands.training import Training, steps

UPDATE_FACTS = {"round": int, "images": int, "loss": float | None, "seen": int, "withheld": str}


class Denoising(Method, ABC):
    """A U-Net, its objective, and what a silo does in a round.

    ``ema`` is the decay of the average over rounds that images are drawn from; 0 draws from the last weights.
    """

    model: UNet
    training: Training
    diffusion: Diffusion = Diffusion()
    ema: float = Field(default=0.0, ge=0, lt=1)

    def train_round(
        self, network: torch.nn.Module, optimiser: torch.optim.Optimizer, silo: Silo, number: int
    ) -> tuple[float, int]:
        """One round of local training: the mean loss, and how many images were seen."""
        images, rng, classes = silo.images.to(silo.bench.device), silo.rng(number), self.model.classes

        def loss(numbers: Tensor) -> Tensor:
            x_0, labels = images.batch(numbers)
            return self.diffusion.loss(network, x_0, labels if classes else None, classes, rng)

        batches = list(self.training.batches(len(images), rng))
        autocast = self.training.autocasts(silo.bench.device)
        total = torch.zeros((), device=silo.bench.device)
        for value in steps(network, optimiser, batches, loss, clip=self.training.clip, autocast=autocast):
            total += value
        return (total / len(batches)).item(), sum(map(len, batches))

    def generator_of(self, weights: Tensors) -> Generator:
        """A generator with these weights."""
        return Generator(self.model, self.diffusion, weights)


def sick(loss: float, weights: Tensors) -> str:
    """Why what came of training must not be sent or kept; nothing where it is well."""
    if not math.isfinite(loss):
        return "its loss is not finite"
    return "its weights are not finite" if finite(weights) else ""


def update_facts(
    silo: Silo, answer: Message, loss: float | None = None, seen: int = 0, withheld: str = ""
) -> dict[str, object]:
    """What a silo tells of a round beside its tensors."""
    number = answer.facts["round"]
    return {"round": number, "images": len(silo.images), "loss": loss, "seen": seen, "withheld": withheld}
