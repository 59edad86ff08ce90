"""What a run with HuSCF-GAN is told, and what follows from that."""

from __future__ import annotations

from abc import ABC
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from manyhands.messages.codec import activations
from manyhands.messages.codec.activations import Bits
from manyhands.messages.message import Message
from manyhands.methods.gan_method import GanMethod
from manyhands.methods.huscf.guard import Guard
from manyhands.methods.huscf.order import BACK, network_of
from manyhands.methods.update_length import MAX_RATIO, MaxUpdateRatio
from manyhands.models.layer_cut import MAX_CUTS, LayerCut, LayerCuts, block_outputs
from manyhands.models.state_spec import state_spec_of
from manyhands.spec import Float, Int
from manyhands.tensors import StateSpec, TensorSpec


class HuSCFSpec(GanMethod, ABC):
    """The fields of ``HuSCF``, which says what they mean."""

    kind: Literal["huscf"] = "huscf"
    cut: LayerCuts | None = None
    cuts: dict[str, LayerCuts] = Field(default_factory=dict, max_length=MAX_CUTS)
    min_head: Int = Field(default=1, ge=0)
    clusters: Literal["auto"] | Annotated[Int, Field(ge=1)] = "auto"
    alpha: Float = Field(default=1.0, ge=0)
    warm: Int = Field(default=2, ge=0)
    statistics: Literal["all", "cluster"] = "all"
    bits: Bits = 32
    guard: Guard | None = None
    max_update_ratio: MaxUpdateRatio = MAX_RATIO

    @model_validator(mode="after")
    def _can_be_cut(self) -> Self:
        if self.min_head >= self.model.middle:
            raise ValueError(
                f"min_head is {self.min_head}: a head ends before block {self.model.middle}, which is the server's"
            )
        for name, cuts in {"cut": self.default, **self.cuts}.items():
            cuts.check(self.model)
            if cuts.discriminator.head < self.min_head:
                raise ValueError(
                    f"{name}: the discriminator's head ends at block {cuts.discriminator.head}, min_head is "
                    f"{self.min_head}: images can be computed from what a single layer sends"
                )
        return self

    @property
    def default(self) -> LayerCuts:
        """The cuts of silos that have none of their own: as little at home as may be."""
        last = self.model.depth - 1
        least = LayerCuts(generator=LayerCut(head=0, tail=last), discriminator=LayerCut(head=self.min_head, tail=last))
        return self.cut or least

    def of(self, silo: str) -> LayerCuts:
        """The cuts of a silo: those of the first name, or pattern of names, that is its own."""
        return next((cuts for name, cuts in self.cuts.items() if fnmatchcase(silo, name)), self.default)

    @property
    def every(self) -> list[LayerCuts]:
        """All cuts that the recipe tells of, each once."""
        return list({str(cuts): cuts for cuts in (self.default, *self.cuts.values())}.values())

    def ends_of(self, cuts: LayerCuts) -> StateSpec:
        """The names, shapes and types of what a silo has at home."""
        return {name: like for name, like in state_spec_of(self.model).items() if cuts.at_home(name)}

    def check(self, message: Message, cuts: LayerCuts) -> None:
        """Refuse what this cut does not make."""
        drawn = message.op == "draw"
        like = self.crossing("make" if drawn else message.op, cuts, up=True)
        activations.check(message.tensors, like, 32 if drawn else self.bits)

    def crossing(self, op: str, cuts: LayerCuts, *, up: bool) -> TensorSpec:
        """What passes: at the head on the way forward up and on the way back down, else at the tail."""
        network, at_head = network_of(op), up != op.endswith(BACK)
        cut = cuts.of(network)
        return block_outputs(self.model, network)[cut.head if at_head else cut.tail - 1]
