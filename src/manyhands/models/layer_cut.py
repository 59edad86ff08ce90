"""Divides a list of blocks in three: a head and a tail at the silo, and a middle on the server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import torch
from pydantic import Field

from manyhands.models.gan import NETWORKS, Gan, run_blocks
from manyhands.spec import Int, Spec
from manyhands.tensors import TensorSpec

T = TypeVar("T")
MAX_CUTS = 1000
"""The most silos, patterns of silo names or clusters that a recipe may give cuts one by one."""


class LayerCut(Spec):
    """Where a network is cut: a silo has the blocks up to ``head`` and those from ``tail`` on.

    The blocks between are on the server; the middle block always is.
    """

    head: Int = Field(ge=0, description="The last block of the silo's head, counted from 0 at the input.")
    tail: Int = Field(ge=0, description="The first block of the silo's tail, counted from 0 at the input.")

    def __str__(self) -> str:
        return f"{self.head}-{self.tail}"

    def parts(self, blocks: Sequence[T]) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
        """Divide any list with one entry for each block into head, middle and tail."""
        return blocks[: self.head + 1], blocks[self.head + 1 : self.tail], blocks[self.tail :]

    def at_home(self, block: int) -> bool:
        """Whether this block is at the silo."""
        return block <= self.head or block >= self.tail

    def check(self, model: Gan, where: str) -> None:
        """Raise ``ValueError`` if head and tail leave the server no middle block.

        Args:
            model: The GAN that is to be cut.
            where: What is cut, for the message of the error.
        """
        if not self.head < model.middle < self.tail < model.depth:
            raise ValueError(
                f"{where}: head must be below block {model.middle}, which is on the server, and tail above it and "
                f"below {model.depth}; not {self.head} and {self.tail}"
            )


class LayerCuts(Spec):
    """Where both networks of a GAN are cut."""

    generator: LayerCut = Field(description="Where the generator is cut.")
    discriminator: LayerCut = Field(description="Where the discriminator is cut.")

    def of(self, network: str) -> LayerCut:
        """Return the cut of one network."""
        return self.generator if network == "generator" else self.discriminator

    def __str__(self) -> str:
        return f"{self.generator} {self.discriminator}"

    def has(self, network: str, block: int) -> bool:
        """Whether this block of a network is at the silo."""
        return self.of(network).at_home(block)

    def at_home(self, name: str) -> bool:
        """Whether the weight of this name is at the silo."""
        network, block, *_ = name.split(".")
        return self.has(network, int(block))

    def check(self, model: Gan) -> None:
        """Raise ``ValueError`` if this model cannot be cut so."""
        for network in NETWORKS:
            self.of(network).check(model, network)


def every_cut(model: Gan) -> list[LayerCut]:
    """Return all cuts of a network, from the one with the fewest blocks at the silo on."""
    heads, tails = range(model.middle), range(model.depth - 1, model.middle, -1)
    return [LayerCut(head=head, tail=tail) for head in heads for tail in tails]


@cache
def block_outputs(model: Gan, network: str) -> tuple[TensorSpec, ...]:
    """Return shape and type of the output of each block, for any number of images."""
    with torch.device("meta"):
        networks = model.build(seed=0)
        labels = torch.zeros(2, dtype=torch.long) if model.classes else None
        x = torch.zeros(2, model.latent) if network == "generator" else torch.zeros(2, *_shape(model))
        outputs = []
        for block in getattr(networks, network):
            x = run_blocks([block], x, labels)
            outputs.append(TensorSpec((None, *x.shape[1:]), torch.float32))
    return tuple(outputs)


def _shape(model: Gan) -> tuple[int, int, int]:
    return model.channels, model.size, model.size
