"""The fields of a HuSCF-GAN run, and what follows from them."""

from __future__ import annotations

from abc import ABC
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from manyhands.messages.codec import activations
from manyhands.messages.codec.activations import Bits
from manyhands.messages.message import Message
from manyhands.methods.gan_method import GanMethod
from manyhands.methods.huscf.activation_noise import Guard
from manyhands.methods.huscf.operations import BACKWARD, GENERATOR_FORWARD, network_of
from manyhands.methods.update_length import MAX_RATIO, MaxUpdateRatio
from manyhands.models.layer_cut import MAX_CUTS, LayerCut, LayerCuts, block_outputs
from manyhands.models.state_spec import state_spec_of
from manyhands.spec import Float, Int
from manyhands.tensors import StateSpec, TensorSpec


class HuSCFSpec(GanMethod, ABC):
    """The fields of ``HuSCF``, and the cuts, shapes and checks that follow from them."""

    kind: Literal["huscf"] = Field(default="huscf", description="The name of this method in a recipe.")
    cut: LayerCuts | None = Field(
        default=None,
        description="Which blocks of both networks are the silo's; None keeps as few at the silo as is allowed.",
    )
    cuts: dict[str, LayerCuts] = Field(
        default_factory=dict,
        max_length=MAX_CUTS,
        description="Cuts of single silos, by name or by a pattern such as 'silo-1*'; the first that matches counts.",
    )
    min_head: Int = Field(
        default=1,
        ge=0,
        description="The lowest number of the block at which the discriminator's head may end: at least min_head + 1 "
        "blocks stay at the silo, because images can be computed from the output of a single layer.",
    )
    clusters: Literal["auto"] | Annotated[Int, Field(ge=1)] = Field(
        default="auto", description="How many clusters of silos to form; 'auto' finds the number."
    )
    alpha: Float = Field(
        default=1.0,
        ge=0,
        description="How strongly a silo's distance d from its cluster lowers its weight n exp(-alpha d), with n its "
        "images; 0 weighs by images alone.",
    )
    warm: Int = Field(
        default=2,
        ge=0,
        description="The number of rounds at the start in which all silos are one cluster, weighed by their images.",
    )
    statistics: Literal["all", "cluster"] = Field(
        default="all",
        description="Whether the server's batch normalisation runs over all silos, or over each cluster by itself.",
    )
    bits: Bits = Field(default=32, description="How many bits a number of an activation or gradient takes on the wire.")
    guard: Guard | None = Field(
        default=None,
        description="Clipping and noise for what the discriminator's head sends; None sends it as it is.",
    )
    max_update_ratio: MaxUpdateRatio = MAX_RATIO

    @model_validator(mode="after")
    def _can_be_cut(self) -> Self:
        if self.min_head >= self.model.middle:
            raise ValueError(
                f"min_head is {self.min_head}: a head ends before block {self.model.middle}, which is the server's"
            )
        for name, cuts in {"cut": self.default_cuts, **self.cuts}.items():
            cuts.check(self.model)
            if cuts.discriminator.head < self.min_head:
                raise ValueError(
                    f"{name}: the discriminator's head ends at block {cuts.discriminator.head}, min_head is "
                    f"{self.min_head}: images can be computed from what a single layer sends"
                )
        return self

    @property
    def default_cuts(self) -> LayerCuts:
        """The cuts of silos that have none of their own: ``cut``, or as few blocks at the silo as is allowed."""
        last = self.model.depth - 1
        least = LayerCuts(generator=LayerCut(head=0, tail=last), discriminator=LayerCut(head=self.min_head, tail=last))
        return self.cut or least

    def cuts_of(self, silo: str) -> LayerCuts:
        """Return the cuts of a silo: those of the first name or pattern that matches it, else the default."""
        return next((cuts for pattern, cuts in self.cuts.items() if fnmatchcase(silo, pattern)), self.default_cuts)

    @property
    def all_cuts(self) -> list[LayerCuts]:
        """All cuts that the recipe names, each once."""
        return list({str(cuts): cuts for cuts in (self.default_cuts, *self.cuts.values())}.values())

    def segment_spec(self, cuts: LayerCuts) -> StateSpec:
        """Return the names, shapes and types of the weights of a silo's segments."""
        return {name: spec for name, spec in state_spec_of(self.model).items() if cuts.at_home(name)}

    def check_pass(self, message: Message, cuts: LayerCuts) -> None:
        """Raise ``Refused`` for activations or gradients that these cuts do not produce."""
        draws = message.op == "draw"
        spec = self.passed_tensor(GENERATOR_FORWARD if draws else message.op, cuts, up=True)
        activations.check(message.tensors, spec, 32 if draws else self.bits)

    def passed_tensor(self, op: str, cuts: LayerCuts, *, up: bool) -> TensorSpec:
        """Return the shape and type of the tensor that an operation passes between silo and server.

        Going up in a forward pass, or down in a backward pass, it is the one at the head; otherwise at the tail.

        Args:
            op: One of ``ORDER``.
            cuts: The cuts of the silo.
            up: Whether the silo sends it (True) or receives it.
        """
        network, at_head = network_of(op), up != op.endswith(BACKWARD)
        cut = cuts.of(network)
        return block_outputs(self.model, network)[cut.head if at_head else cut.tail - 1]
