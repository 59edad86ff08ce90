"""How a silo trains in a round, as a recipe says it: its optimiser and steps, and how images are changed at random."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from manyhands.data.augmentation import flipped, shifted
from manyhands.spec import Float, Int, Spec


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
    weight_decay: Float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="The weight decay: with adamw it shrinks the weights by themselves (decoupled), with adam it is "
        "added to the gradient, as a penalty of the loss is; 0 for none.",
    )
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

    flip: bool = Field(
        default=False,
        description="Whether each image of a batch is mirrored left to right with a probability of one half; not for "
        "characters, and not where left and right differ.",
    )
    shift: Int = Field(
        default=0,
        ge=0,
        le=512,
        description="By up to how many pixels each image of a batch is moved at random in both directions; what is "
        "then missing at an edge is its reflection. 0 moves none.",
    )
    warmup: Int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="In how many optimiser steps, counted from the start of the run, the learning rate rises to its "
        "full value; 0 starts with all of it. It is in steps, because what must settle are the moments of Adam, "
        "however long the run is.",
    )
    step_ema: Float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="The decay of an average of the weights over the optimiser steps of a round; 0 for none. A method "
        "that averages silos sends this average instead of the last weights; a network that stays where it is goes on "
        "from its last weights, and the average is what enters the average over rounds (ema) and is sampled.",
    )
    accumulate: Int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="In how many parts a batch passes through the network, one after another, to take less memory; "
        "their gradients are added up to that of the whole batch.",
    )
    checkpointing: bool = Field(
        default=False,
        description="Whether the backward pass computes features again instead of keeping them, which takes less "
        "memory and more time.",
    )
    compile: bool = Field(
        default=False,
        description="Whether torch.compile compiles the network, which pays on a GPU; it needs a C++ compiler.",
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
        if self.accumulate > self.batch:
            raise ValueError(f"accumulate is {self.accumulate}, but a batch has {self.batch} images")
        return self

    def repeated(self, count: int) -> Self:
        """Return the same training with ``count`` times the steps; a number of epochs stays."""
        return self if self.steps is None else self.model_copy(update={"steps": self.steps * count})

    def joined(self, count: int) -> Self:
        """Return the same training with batches ``count`` times as large, for the images of ``count`` silos."""
        return self.model_copy(update={"batch": self.batch * count})

    def halved(self) -> Self:
        """Return the same training with batches half as large, of at least one image."""
        batch = max(self.batch // 2, 1)
        return self.model_copy(update={"batch": batch, "accumulate": min(self.accumulate, batch)})

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

    def warmed_up(self, step: int) -> float:
        """Return the share of the learning rate at an optimiser step, counted from 0 at the start of the run."""
        return min((step + 1) / self.warmup, 1.0) if self.warmup else 1.0

    def set_rate(self, optimiser: torch.optim.Optimizer, progress: float) -> None:
        """Give an optimiser the learning rate after a share ``progress`` of the run."""
        for group in optimiser.param_groups:
            group["lr"] = self.rate(progress)

    def optimiser_of(self, network: nn.Module, progress: float) -> torch.optim.Optimizer:
        """Return a new optimiser of the network's weights, with the learning rate at ``progress``."""
        kind = torch.optim.Adam if self.optimiser == "adam" else torch.optim.AdamW
        return kind(network.parameters(), self.rate(progress), self.betas, weight_decay=self.weight_decay, fused=True)

    def warming_up(self, batches: Sequence[Tensor], optimiser: torch.optim.Optimizer, number: int) -> Iterator[Tensor]:
        """Yield the batches of a round, and give the optimiser the rate of each step before it.

        Args:
            batches: The image numbers of each batch, (B,).
            optimiser: The optimiser, with the learning rate of the round.
            number: The round.
        """
        full = [group["lr"] for group in optimiser.param_groups]
        for step, numbers in enumerate(batches, number * len(batches)):
            for group, rate in zip(optimiser.param_groups, full, strict=True):
                group["lr"] = rate * self.warmed_up(step)
            yield numbers

    def augmented(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Mirror and move images, (B, C, H, W), at random, as far as ``flip`` and ``shift`` say."""
        if self.shift:
            x = shifted(x, self.shift, rng)
        return flipped(x, rng) if self.flip else x

    def check_side(self, size: int) -> None:
        """Raise ``ValueError`` where images of this side cannot be moved as far as ``shift`` says."""
        if self.shift >= size:
            raise ValueError(f"training.shift is {self.shift}, but images are {size} pixels wide; at most {size - 1}")

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

    @model_validator(mode="after")
    def _of_two_networks(self) -> Self:
        """Refuse what the loop of a single loss does, and that of two networks does not."""
        for name in ("warmup", "accumulate", "checkpointing", "compile"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for a network with a single loss; a GAN is trained without it")
        return self
