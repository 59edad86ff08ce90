"""Federated Split GANs: one generator on the server, discriminators split over the devices of each silo."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from manyhands.diffusion.sampling import Sampling
from manyhands.formatting import count_text, size_text
from manyhands.methods.gans.discriminator_silos import DiscriminatorSilosMethod
from manyhands.methods.gans.generator_server import GeneratorServer
from manyhands.models.block_cost import block_flops
from manyhands.models.layer_cut import block_outputs
from manyhands.spec import Int
from manyhands.tensors import Tensors, WeightedMean

PASSES = 3
"""How often a batch goes forward and backward through a discriminator in an iteration."""


class SplitGan(DiscriminatorSilosMethod):
    """One generator on the server; each silo's discriminator is split over its own devices and averaged each round.

    All silos train on the same generated images.

    References:
        Federated Split GANs, Kortoci, Liang, Zhou, Lee, Mehrabi, Hui, Tarkoma, Crowcroft, 2022, arXiv 2207.01750
    """

    kind: Literal["splitgan"] = Field(default="splitgan", description="The name of this method in a recipe.")
    devices: tuple[Int, ...] = Field(
        default=(1, 2),
        description="The number of the first block of each device of a silo but the first; empty for one device.",
    )

    round_end: ClassVar[str] = "reports the round; except after the last one, sends its discriminator and gets the mean"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if any(a >= b for a, b in pairwise((0, *self.devices, self.model.depth))):
            raise ValueError(f"devices is {self.devices}, expected rising numbers from 1 to {self.model.depth - 1}")
        return self

    @property
    def borders(self) -> tuple[int, ...]:
        """The first block of each device but the first."""
        return self.devices

    def sends(self, number: int) -> bool:
        """Return whether discriminators are averaged after a round: after all but the last."""
        return number + 1 < self.rounds

    def server(self, seed: int, silos: Mapping[str, int]) -> SplitGanServer:
        """Return the server, with the generator of the common start."""
        return SplitGanServer(self, seed, silos)

    def cost_lines(self, silos: int, sampling: Sampling) -> list[str]:
        """Return the traffic of a mini-batch, and the work and traffic of a silo's devices for an image."""
        work = [sum(flops) for flops in block_flops(self.model, "discriminator")]
        passed = [block_outputs(self.model, "discriminator")[border - 1].size for border in self.devices]
        shares = [sum(work[a:b]) for a, b in pairwise((0, *self.devices, self.model.depth))]
        flops = ", ".join(f"{count_text(PASSES * share)}FLOP" for share in shares)
        lines = [f"the {len(shares)} devices of a silo do {flops} for an image in an iteration"]
        if passed:
            lines.append(f"and send {size_text(2 * PASSES * 4 * sum(passed))} for it to each other, within the silo")
        return [*super().cost_lines(silos, sampling), *lines]


class SplitGanServer(GeneratorServer):
    """Averages discriminators."""

    def closed(self, sent: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """Return the plain mean of the discriminators that came, for every silo."""
        mean = WeightedMean()
        for silo in sorted(sent):
            mean.add(sent[silo], 1)
        shared = mean.value()
        return dict.fromkeys(self.silos, shared) if shared else {}
