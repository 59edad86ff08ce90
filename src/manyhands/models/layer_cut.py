"""Lists of blocks in three: a head and a tail at the silo, the middle on the server."""

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
"""So many silos, patterns of their names or clusters may be told of one by one."""


class LayerCut(Spec):
    """Where a network is cut: a silo has the blocks up to ``head``, and those from ``tail`` on.

    The blocks between are the server's; the middle one always is.
    """

    head: Int = Field(ge=0)
    tail: Int = Field(ge=0)

    def __str__(self) -> str:
        return f"{self.head}-{self.tail}"

    def parts(self, blocks: Sequence[T]) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
        """Head, middle and tail of anything that is a list of blocks."""
        return blocks[: self.head + 1], blocks[self.head + 1 : self.tail], blocks[self.tail :]

    def at_home(self, block: int) -> bool:
        """Whether a silo has this block itself."""
        return block <= self.head or block >= self.tail

    def check(self, model: Gan, where: str) -> None:
        """Raise ``ValueError`` for what is out of order, or leaves the server no middle."""
        if not self.head < model.middle < self.tail < model.depth:
            raise ValueError(
                f"{where}: the head ends before block {model.middle}, which is the server's, and the tail begins after "
                f"it and before block {model.depth}; not {self.head} and {self.tail}"
            )


class LayerCuts(Spec):
    """Where both networks are cut."""

    generator: LayerCut
    discriminator: LayerCut

    def of(self, network: str) -> LayerCut:
        """That of one network."""
        return self.generator if network == "generator" else self.discriminator

    def __str__(self) -> str:
        return f"{self.generator} {self.discriminator}"

    def has(self, network: str, block: int) -> bool:
        """Whether a silo has this block of a network itself."""
        return self.of(network).at_home(block)

    def at_home(self, name: str) -> bool:
        """Whether a silo has the weight of this name itself."""
        network, block, *_ = name.split(".")
        return self.has(network, int(block))

    def check(self, model: Gan) -> None:
        """Raise ``ValueError`` for cuts that this model cannot have."""
        for network in NETWORKS:
            self.of(network).check(model, network)


def every_cut(model: Gan) -> list[LayerCut]:
    """All cuts of a network, from the one with the least at home on."""
    heads, tails = range(model.middle), range(model.depth - 1, model.middle, -1)
    return [LayerCut(head=head, tail=tail) for head in heads for tail in tails]


@cache
def block_outputs(model: Gan, network: str) -> tuple[TensorSpec, ...]:
    """What comes out of each block, for any number of images."""
    with torch.device("meta"):
        made = model.build(seed=0)
        labels = torch.zeros(2, dtype=torch.long) if model.classes else None
        x = torch.zeros(2, model.latent) if network == "generator" else torch.zeros(2, *_shape(model))
        found = []
        for block in getattr(made, network):
            x = run_blocks([block], x, labels)
            found.append(TensorSpec((None, *x.shape[1:]), torch.float32))
    return tuple(found)


def _shape(model: Gan) -> tuple[int, int, int]:
    return model.channels, model.size, model.size
