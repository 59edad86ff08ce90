"""What the methods have in common that train one denoiser at each silo."""

from __future__ import annotations

import math
from abc import ABC
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from manyhands.diffusion.objective import Diffusion
from manyhands.errors import RecipeError
from manyhands.message import Message
from manyhands.meter import Meter
from manyhands.methods.method import Method
from manyhands.methods.proximal import Proximal
from manyhands.models.generator import Generator
from manyhands.models.unet import UNet
from manyhands.silo import Silo
from manyhands.spec import Float
from manyhands.tensors import Tensors, finite
from manyhands.training import Training, steps


class Trained(NamedTuple):
    """What came of a round of local training: the mean loss, how many images were seen, and the work it took."""

    loss: float | None = None
    seen: int = 0
    flops: int = 0


NOTHING = Trained()


class Denoising(Method, ABC):
    """A U-Net, its objective, and what a silo does in a round.

    ``ema`` is the decay of the average over rounds that images are drawn from; 0 draws from the last weights.
    """

    model: UNet
    training: Training
    diffusion: Diffusion = Diffusion()
    ema: Float = Field(default=0.0, ge=0, lt=1)

    def fits(self, silo: Silo) -> None:
        """The silo's images must be of the model's size, and labelled if it is conditional."""
        images, model = silo.images, self.model
        if not len(images):
            raise RecipeError(f"{silo.name}: holds no images")
        if tuple(images.pixels.shape[1:]) != (model.channels, model.size, model.size):
            shape = " x ".join(map(str, images.pixels.shape[1:]))
            raise RecipeError(f"{silo.name}: holds images of {shape}, the model is for {model.channels} x {model.size}")
        if model.classes and images.labels is None:
            raise RecipeError(f"{silo.name}: has no labels; use a model with classes = 0")
        if model.classes and len(images.classes) != model.classes:
            raise RecipeError(f"{silo.name}: has {len(images.classes)} classes, the model is for {model.classes}")

    def progress(self, number: int) -> float:
        """The share of the run that is done before a round: 0 in the first, 1 in the last."""
        return number / max(self.rounds - 1, 1)

    def train_round(
        self,
        network: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        silo: Silo,
        number: int,
        pull: Proximal | None = None,
    ) -> Trained:
        """One round of local training, held near to its start by the pull if there is one."""
        images, rng, classes = silo.images.to(silo.bench.device), silo.rng(number), self.model.classes

        def loss(numbers: Tensor) -> Tensor:
            x_0, labels = images.batch(numbers)
            value = self.diffusion.loss(network, x_0, labels if classes else None, classes, rng)
            return pull.added_to(value) if pull else value

        batches = list(self.training.batches(len(images), rng))
        autocast = self.training.autocasts(silo.bench.device)
        total = torch.zeros((), device=silo.bench.device)
        meter = Meter(silo.bench.known_flops)
        told: dict[str, Any] = {"clip": self.training.clip, "autocast": autocast, "meter": meter, "work": self.model}
        rate = self.training.rate(self.progress(number))
        for value in steps(network, optimiser, batches, loss, **told):
            total += value
            if pull:
                pull.after_step(rate)
        return Trained((total / len(batches)).item(), sum(map(len, batches)), meter.flops)

    def generator_of(self, weights: Tensors) -> Generator:
        """A generator with these weights."""
        return Generator(self.model, self.diffusion, weights, ema=self.ema)


def sick(trained: Trained, weights: Tensors) -> str:
    """Why what came of training must not be sent or kept; nothing where it is well."""
    if not math.isfinite(trained.loss or 0):
        return "its loss is not finite"
    return "its weights are not finite" if finite(weights) else ""


def update_facts(silo: Silo, answer: Message, trained: Trained = NOTHING, withheld: str = "") -> dict[str, object]:
    """What a silo tells of a round beside its tensors."""
    number = answer.facts["round"]
    return {"round": number, "images": len(silo.images), **trained._asdict(), "withheld": withheld}
