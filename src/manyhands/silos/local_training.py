"""The training loop at a silo, which all methods share."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from manyhands.silos.flops import Meter
from manyhands.spec import Float, Int, Spec
from manyhands.tensors import Tensors, snapshot


class Training(Spec):
    """The training of a silo in one round: a number of steps or of epochs with an optimiser."""

    min_images: ClassVar[int] = 1
    """The fewest images that a silo, and a batch of it, may have."""

    batch: Int = Field(default=64, ge=1, le=1_000_000, description="The number of images of a batch.")
    steps: Int | None = Field(
        default=None, ge=1, le=1_000_000, description="The number of optimiser steps of a round; None to set epochs."
    )
    epochs: Int | None = Field(
        default=None, ge=1, le=1_000_000, description="The number of epochs of a round; None to set steps."
    )
    optimiser: Literal["adam", "adamw"] = Field(default="adam", description="The optimiser: Adam or AdamW.")
    learning_rate: Float = Field(default=2e-4, gt=0, le=10, description="The learning rate of the first round.")
    learning_rate_end: Float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="The share of the learning rate in the last round; it falls along a cosine. 1 keeps it constant.",
    )
    weight_decay: Float = Field(default=0.0, ge=0, le=100, description="The weight decay; 0 for none.")
    betas: tuple[Float, Float] = Field(
        default=(0.9, 0.999), description="The decay of Adam's first and second moments."
    )
    clip: Float | None = Field(
        default=1.0, gt=0, description="The largest norm of the gradient, which is clipped to it; None for no clipping."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="The precision of the forward pass; auto is bfloat16 autocast on CUDA and float32 elsewhere.",
    )

    @field_validator("betas")
    @classmethod
    def _rates(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas[0]} and {betas[1]}; each must be at least 0 and less than 1")
        return betas

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set either steps or epochs, one of the two")
        return self

    def repeated(self, count: int) -> Self:
        """Return the same training with ``count`` times the steps; a number of epochs stays."""
        return self if self.steps is None else self.model_copy(update={"steps": self.steps * count})

    def joined(self, count: int) -> Self:
        """Return the same training with batches ``count`` times as large, for the images of ``count`` silos."""
        return self.model_copy(update={"batch": self.batch * count})

    def halved(self) -> Self:
        """Return the same training with batches half as large, of at least one image."""
        return self.model_copy(update={"batch": max(self.batch // 2, 1)})

    def seen(self, count: int) -> int:
        """Return how many images a silo with ``count`` images trains on in a round; repeated ones count again."""
        return (self.epochs or 0) * count + (self.steps or 0) * min(self.batch, count)

    def iterations(self, count: int) -> int:
        """Return how many batches a silo with ``count`` images trains on in a round."""
        return self.steps or (self.epochs or 0) * -(-count // min(self.batch, max(count, 1)))

    def rate(self, progress: float) -> float:
        """Return the learning rate after a share ``progress`` of the run, from 0 to 1."""
        end = self.learning_rate_end
        return self.learning_rate * (end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2)

    def set_rate(self, optimiser: torch.optim.Optimizer, progress: float) -> None:
        """Give an optimiser the learning rate after a share ``progress`` of the run."""
        for group in optimiser.param_groups:
            group["lr"] = self.rate(progress)

    def optimiser_of(self, network: nn.Module, progress: float) -> torch.optim.Optimizer:
        """Return a new optimiser of the network's weights, with the learning rate at ``progress``."""
        kind = torch.optim.Adam if self.optimiser == "adam" else torch.optim.AdamW
        return kind(network.parameters(), self.rate(progress), self.betas, weight_decay=self.weight_decay, fused=True)

    def autocasts(self, device: torch.device) -> bool:
        """Whether the forward pass runs in bfloat16 on this device."""
        return self.precision == "bfloat16" or (self.precision == "auto" and device.type == "cuda")

    def batches(self, count: int, rng: torch.Generator) -> Iterator[Tensor]:
        """Yield the image numbers of each batch of a round, (B,).

        Every image is used once before any is used again. With ``steps``, all batches are full, unless the silo has
        fewer images than a batch. With ``epochs``, the last batch of an epoch may be smaller.

        Args:
            count: The number of images of the silo.
            rng: The random numbers of the order; batches are on their device.
        """
        size = min(self.batch, count)
        if self.epochs is not None:
            for _ in range(self.epochs):
                parts = torch.split(torch.randperm(count, generator=rng, device=rng.device), size)
                yield from (part for part in parts if len(part) >= min(self.min_images, count))
            return
        remaining = torch.empty(0, dtype=torch.long, device=rng.device)
        for _ in range(self.steps or 0):
            if len(remaining) < size:
                remaining = torch.cat([remaining, torch.randperm(count, generator=rng, device=rng.device)])
            yield remaining[:size]
            remaining = remaining[size:]


class GanTraining(Training):
    """The training of a GAN at a silo in one round: without gradient clipping, in float32.

    Batch norm needs at least two images: a single image that remains at the end of an epoch is left out.
    """

    learning_rate: Float = Field(default=2e-4, gt=0, le=10, description="The learning rate of the first round.")
    betas: tuple[Float, Float] = Field(
        default=(0.5, 0.999), description="The decay of Adam's first and second moments."
    )
    min_images: ClassVar[int] = 2

    batch: Int = Field(default=64, ge=2, le=1_000_000, description="The number of images of a batch.")
    clip: None = Field(default=None, description="A GAN is trained without gradient clipping.")
    precision: Literal["auto", "float32"] = Field(
        default="auto", description="The precision of the forward pass, which is float32 for a GAN."
    )


def steps(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[Tensor],
    loss: Callable[[Tensor], Tensor],
    *,
    clip: float | None = None,
    autocast: bool = False,
    meter: Meter | None = None,
    work: Hashable = None,
) -> Iterator[Tensor]:
    """Take one optimiser step for each batch, and yield its loss, still on the device.

    Args:
        network: The network to train.
        optimiser: The optimiser of its weights.
        batches: The image numbers of each batch, (B,).
        loss: Returns the loss of a batch from its image numbers; a method adds its terms here.
        clip: The largest norm of the gradient; None for no clipping.
        autocast: Whether the forward pass runs in bfloat16.
        meter: Counts the floating-point operations.
        work: The name of this work for the meter.
    """
    meter = meter or Meter({})
    device = next(network.parameters()).device.type
    network.train()
    for numbers in batches:
        optimiser.zero_grad(set_to_none=True)
        with meter.work(work, len(numbers)):
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                value = loss(numbers)
            value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimiser.step()
        yield value.detach()


def optimiser_state(optimiser: torch.optim.Optimizer) -> Tensors:
    """Return the state of the optimiser as named tensors."""
    state = optimiser.state_dict()["state"]
    return snapshot({f"optimiser.{i}.{key}": value for i, entry in state.items() for key, value in entry.items()})


def load_optimiser_state(optimiser: torch.optim.Optimizer, kept: Mapping[str, Tensor]) -> None:
    """Load a state of ``optimiser_state``; without one, the optimiser stays as it is."""
    state: dict[int, Tensors] = {}
    for name, value in kept.items():
        if name.startswith("optimiser."):
            _, i, key = name.split(".")
            state.setdefault(int(i), {})[key] = value.clone()
    if state:
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
