"""Federated Split GANs: one generator on the server, discriminators split over the devices of each silo."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from manyhands.diffusion.sample import Sampling
from manyhands.formatting import count_text, size_text
from manyhands.methods.gans.remote import RemoteGenerator
from manyhands.methods.gans.remote_server import RemoteServer
from manyhands.models.layer_cut import block_outputs
from manyhands.models.work import block_flops
from manyhands.spec import Int
from manyhands.tensors import Tensors, WeightedMean

PASSES = 3
"""How often a batch goes through a discriminator in an iteration, there and back."""


class SplitGan(RemoteGenerator):
    """One generator on the server; the discriminator of a silo is split over its own devices, and averaged each round.

    ``devices`` are the numbers of the blocks that a device begins with, but for the first; (): one device has it all.
    All silos learn from and judge the same made images.

    References:
        Federated Split GANs, Kortoci, Liang, Zhou, Lee, Mehrabi, Hui, Tarkoma, Crowcroft, 2022, arXiv 2207.01750
    """

    kind: Literal["splitgan"] = "splitgan"
    devices: tuple[Int, ...] = (1, 2)

    ends: ClassVar[str] = "tells how the round went; but for the last one, sends its discriminator and gets the mean"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if any(a >= b for a, b in pairwise((0, *self.devices, self.model.depth))):
            raise ValueError(f"devices are {self.devices}; they rise, from 1 on and below {self.model.depth}")
        return self

    @property
    def borders(self) -> tuple[int, ...]:
        """The blocks that a device begins with."""
        return self.devices

    def sends(self, number: int) -> bool:
        """After each round but the last, when there is no more use."""
        return number + 1 < self.rounds

    def server(self, seed: int, silos: Mapping[str, int]) -> SplitGanServer:
        """The server, with the generator of the common start."""
        return SplitGanServer(self, seed, silos)

    def cost_lines(self, silos: int, sampling: Sampling) -> list[str]:
        """Beside that, what the devices of a silo do and pass on, an image and an iteration."""
        work = [sum(each) for each in block_flops(self.model, "discriminator")]
        passed = [block_outputs(self.model, "discriminator")[border - 1].size for border in self.devices]
        shares = [sum(work[a:b]) for a, b in pairwise((0, *self.devices, self.model.depth))]
        each = ", ".join(f"{count_text(PASSES * share)}FLOP" for share in shares)
        lines = [f"the {len(shares)} devices of a silo do {each} for an image in an iteration"]
        if passed:
            lines.append(f"and pass on {size_text(2 * PASSES * 4 * sum(passed))} of it within the silo")
        return [*super().cost_lines(silos, sampling), *lines]


class SplitGanServer(RemoteServer):
    """Averages discriminators."""

    def closed(self, sent: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """The plain mean of those that came, for everyone."""
        mean = WeightedMean()
        for silo in sorted(sent):
            mean.add(sent[silo], 1)
        shared = mean.value()
        return dict.fromkeys(self.silos, shared) if shared else {}
