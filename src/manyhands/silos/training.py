"""The one local loop, for every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from manyhands.silos.flops import Meter
from manyhands.spec import Float, Int, Spec
from manyhands.tensors import Tensors, snapshot


class Training(Spec):
    """What a silo does in one round: so many steps, or so many epochs, of an optimiser.

    ``learning_rate_end`` is the share of the learning rate that is left in the last round; it falls along a cosine.
    ``precision = "auto"`` takes bfloat16 autocast on CUDA and float32 elsewhere.
    """

    least: ClassVar[int] = 1

    batch: Int = Field(default=64, ge=1, le=1_000_000)
    steps: Int | None = Field(default=None, ge=1, le=1_000_000)
    epochs: Int | None = Field(default=None, ge=1, le=1_000_000)
    optimiser: Literal["adam", "adamw"] = "adam"
    learning_rate: Float = Field(default=2e-4, gt=0, le=10)
    learning_rate_end: Float = Field(default=1.0, ge=0, le=1)
    weight_decay: Float = Field(default=0.0, ge=0, le=100)
    betas: tuple[Float, Float] = (0.9, 0.999)
    clip: Float | None = Field(default=1.0, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @field_validator("betas")
    @classmethod
    def _rates(cls, told: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in told):
            raise ValueError(f"betas are {told[0]} and {told[1]}; each is at least 0 and less than 1")
        return told

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("say either steps or epochs, one of the two")
        return self

    def repeated(self, count: int) -> Self:
        """The same training with ``count`` times the steps; epochs are of one's own data, and stay."""
        return self if self.steps is None else self.model_copy(update={"steps": self.steps * count})

    def joined(self, count: int) -> Self:
        """The same training by batches ``count`` times as large: as many steps, on all that ``count`` silos have."""
        return self.model_copy(update={"batch": self.batch * count})

    def halved(self) -> Self:
        """The same training by batches half as large, as far as they can be."""
        return self.model_copy(update={"batch": max(self.batch // 2, 1)})

    def seen(self, count: int) -> int:
        """How many images, each as often as it is taken, a silo of ``count`` images takes in a round."""
        return (self.epochs or 0) * count + (self.steps or 0) * min(self.batch, count)

    def iterations(self, count: int) -> int:
        """How many batches a silo of ``count`` images takes in a round."""
        return self.steps or (self.epochs or 0) * -(-count // min(self.batch, max(count, 1)))

    def rate(self, progress: float) -> float:
        """The learning rate when a share ``progress`` of the run is done."""
        left = self.learning_rate_end
        return self.learning_rate * (left + (1 - left) * (1 + math.cos(math.pi * progress)) / 2)

    def optimiser_of(self, network: nn.Module, progress: float) -> torch.optim.Optimizer:
        """A fresh optimiser of the network's weights."""
        kind = torch.optim.Adam if self.optimiser == "adam" else torch.optim.AdamW
        return kind(network.parameters(), self.rate(progress), self.betas, weight_decay=self.weight_decay, fused=True)

    def autocasts(self, device: torch.device) -> bool:
        """Whether the forward pass runs in bfloat16."""
        return self.precision == "bfloat16" or (self.precision == "auto" and device.type == "cuda")

    def batches(self, count: int, rng: torch.Generator) -> Iterator[Tensor]:
        """The numbers of the images in each batch of a round, of ``count`` images in all.

        Every image is taken once before any is taken again. Counted in steps, all batches are full but where the
        silo has fewer images than a batch; counted in epochs, the last batch of an epoch may be smaller.
        """
        size = min(self.batch, count)
        if self.epochs is not None:
            for _ in range(self.epochs):
                parts = torch.split(torch.randperm(count, generator=rng, device=rng.device), size)
                yield from (part for part in parts if len(part) >= min(self.least, count))
            return
        left = torch.empty(0, dtype=torch.long, device=rng.device)
        for _ in range(self.steps or 0):
            if len(left) < size:
                left = torch.cat([left, torch.randperm(count, generator=rng, device=rng.device)])
            yield left[:size]
            left = left[size:]


class GanTraining(Training):
    """What a silo does in a round, as adversarial training is used to: no clipping of gradients, all in float32.

    Norms over a batch need two images at least: one that is left over at the end of an epoch is not taken alone.
    """

    learning_rate: Float = Field(default=2e-4, gt=0, le=10)
    betas: tuple[Float, Float] = (0.5, 0.999)
    least: ClassVar[int] = 2

    batch: Int = Field(default=64, ge=2, le=1_000_000)
    clip: None = None
    precision: Literal["auto", "float32"] = "auto"


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
    """Take one optimiser step for each batch of image numbers, and yield its loss, still on the device.

    A method adds its terms to ``loss``, which is given the numbers of the batch's images. ``meter`` counts the work,
    under the name ``work``.
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
    """The optimiser's memory as named tensors."""
    state = optimiser.state_dict()["state"]
    return snapshot({f"optimiser.{i}.{key}": value for i, entry in state.items() for key, value in entry.items()})


def load_optimiser_state(optimiser: torch.optim.Optimizer, kept: Tensors) -> None:
    """Go on with a kept memory; without one, the optimiser stays fresh."""
    state: dict[int, Tensors] = {}
    for name, value in kept.items():
        if name.startswith("optimiser."):
            _, i, key = name.split(".")
            state.setdefault(int(i), {})[key] = value.clone()
    if state:
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
