"""The fields of a run with federated averaging, and what follows from them."""

from __future__ import annotations

import math
from abc import ABC
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from manyhands.errors import RecipeError
from manyhands.messages.codec.codec import BFloat16, Codec, Float16, Float32
from manyhands.messages.codec.quantised_updates import Updates
from manyhands.methods.fedavg.broadcast import Broadcast, Downlink
from manyhands.methods.fedavg.server_optimizer import Momentum, ServerOptimizer
from manyhands.methods.fedavg.sharing import ALL, SHARED, Share
from manyhands.methods.fedavg.stacking import StackedBroadcast, StackedDownlink
from manyhands.methods.proximal import Mode
from manyhands.methods.update_length import MAX_RATIO, MaxUpdateRatio
from manyhands.methods.whole_network import WholeNetworkMethod
from manyhands.models.adapters import is_factor
from manyhands.models.state_spec import state_spec_of
from manyhands.registry import CODECS, SERVER_OPTIMIZERS, OneOf
from manyhands.silos.silo import Silo
from manyhands.spec import Float, Int
from manyhands.tensors import StateSpec, Tensors

AnyCodec = Annotated[Codec, OneOf(CODECS, by_name=True)]
AnyServerOptimizer = Annotated[ServerOptimizer, OneOf(SERVER_OPTIMIZERS, by_name=True)]
Facts = dict[str, Any]


class FedAvgSpec(WholeNetworkMethod, ABC):
    """The fields of ``FedAvg``, and the specifications that follow from them."""

    kind: Literal["fedavg"] = Field(default="fedavg", description="The name of this method in a recipe.")
    participants: Int | None = Field(
        default=None,
        ge=1,
        description="How many silos take part in a round, sampled without replacement; None takes all.",
    )
    keep_optimiser: bool = Field(
        default=False, description="Whether a silo keeps its optimiser's state from round to round."
    )
    proximal: Float = Field(
        default=0.0, ge=0, le=1e30, description="The mu of the proximal term of FedProx and FedDM-prox; 0 has no term."
    )
    proximal_mode: Mode = Field(
        default="coupled",
        description="'coupled' adds the proximal term to the loss, as published; 'decoupled' applies it after each "
        "optimiser step, which is stable for every mu.",
    )
    up: AnyCodec = Field(default=Float32(), description="The codec of weights from silos to the server.")
    down: AnyCodec = Field(default=Float32(), description="The codec of weights from the server to silos.")
    share: Share = Field(
        default="all",
        description="Which parts of the U-Net are averaged: 'all', 'up' (the way up), 'up+mid', or 'usplit', which "
        "averages all but has each silo send about half. Other parts stay at their silo.",
    )
    server_optimizer: AnyServerOptimizer | None = Field(
        default=None, description="How the server applies the mean update; None takes the mean as it is."
    )
    kept: bool = Field(
        default=False,
        description="Whether silos receive the last mean, too, and keep the network as a generator of their own.",
    )
    max_update_ratio: MaxUpdateRatio = MAX_RATIO

    @field_validator("server_optimizer")
    @classmethod
    def _plain_mean(cls, value: AnyServerOptimizer | None) -> AnyServerOptimizer | None:
        return None if value == Momentum(rate=1.0, momentum=0.0) else value

    @model_validator(mode="after")
    def _fine_names_match(self) -> Self:
        for codec in (self.up, self.down):
            words = codec.fine if isinstance(codec, Updates) and codec.fine != Updates().fine else ()
            if bad := [
                word for word in words if not word or not any(word in name for name in state_spec_of(self.model))
            ]:
                raise ValueError(f"fine has {bad[0]!r}, but no weight of the model has that in its name")
        return self

    @model_validator(mode="after")
    def _stacks_alone(self) -> Self:
        """Stacked adapters are no weights that stay the same from round to round."""
        if self.model.stacking is None:
            return self
        where = "with model.adapter.kind = 'stacked', whose factors are new in each round,"
        going_on = {"server_optimizer": self.server_optimizer, "keep_optimiser": self.keep_optimiser}
        if odd := [name for name, value in {"share": self.share != "all", **going_on}.items() if value]:
            raise ValueError(f"{where} {odd[0]} has nothing to go on from; use 'ffa'")
        if self.up.relative or self.down.relative:
            raise ValueError(f"{where} a codec of differences has nothing that it differs from; use 'float16' or 'ffa'")
        if not isinstance(self.down, Float32 | Float16 | BFloat16):
            raise ValueError(f"{where} down is a codec of floats: 'float32', 'float16' or 'bfloat16'")
        return self

    @model_validator(mode="after")
    def _single_loss(self) -> Self:
        if self.proximal and not self.learner.has_single_loss:
            raise ValueError(f"proximal is for a single loss, but {self.model.noun} has two")
        return self

    @model_validator(mode="after")
    def _parts_to_share(self) -> Self:
        if self.share != "all" and not self.model.has_parts:
            raise ValueError(f"share is {self.share!r}, but {self.model.noun} can only be shared with 'all'")
        return self

    def check_silo(self, silo: Silo) -> None:
        """Check the images, and that a round is not much shorter than what its average is over."""
        super().check_silo(silo)
        decay, steps = self.training.step_ema, self.training.iterations(len(silo.images))
        if decay and steps > 1 and 1 / (1 - decay) > steps:
            raise RecipeError(
                f"training.step_ema is {decay:g}, an average over about {1 / (1 - decay):.0f} steps, but a round of "
                f"{silo.name} has {steps}: half of what it learns would be lost with each round; at most "
                f"{math.floor((1 - 1 / steps) * 1e4) / 1e4:g} is expected, and ema averages over rounds"
            )

    @property
    def downlink(self) -> Downlink | StackedDownlink:
        """How weights travel to silos."""
        if self.model.stacking:
            return StackedDownlink(self.down, self.model.stacking, state_spec_of(self.model))
        return Downlink(self.down, state_spec_of(self.model), self.spec_of(SHARED[self.share]))

    @property
    def personal(self) -> bool:
        """Whether parts of the network stay at their silo."""
        return SHARED[self.share] != ALL

    def spec_of(self, parts: str) -> StateSpec:
        """Return the names, shapes and types of the weights of some parts, joined by "+"."""
        wanted, every = parts.split("+"), state_spec_of(self.model)
        names = [name for name in every if not self.model.stacking or is_factor(name)]
        return {name: every[name] for name in names if self.model.part_of(name) in wanted}

    def broadcast(
        self, seed: int, weights: Tensors, base: Tensors | None = None, number: int = 0
    ) -> Broadcast | StackedBroadcast:
        """Return what the server sends in a round.

        Args:
            seed: The seed of the run.
            weights: The server's weights.
            base: What silos have of the last round, or were sent of it.
            number: The round.
        """
        downlink = self.downlink
        if isinstance(downlink, StackedDownlink):
            return StackedBroadcast(downlink, seed, weights, base, number)
        return Broadcast(downlink, seed, weights, base, number)
