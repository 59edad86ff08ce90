"""MD-GAN: one generator on the server, discriminators that move from silo to silo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from manyhands.methods.gans.remote import RemoteGenerator
from manyhands.methods.gans.remote_server import RemoteServer
from manyhands.seed import numpy_rng
from manyhands.spec import Int
from manyhands.tensors import Tensors


class MDGan(RemoteGenerator):
    """One generator on the server, a discriminator at each silo; they change places every ``swap`` rounds (0: never).

    In each mini-batch the server makes ``batches`` of images; a silo learns from one of them and judges the next.

    References:
        MD-GAN: Multi-Discriminator Generative Adversarial Networks for Distributed Datasets, Hardy, Le Merrer,
            Sericola, 2018, arXiv 1811.03850
    """

    kind: Literal["mdgan"] = "mdgan"
    swap: Int = Field(default=1, ge=0)
    batches: Int = Field(default=2, ge=1, le=10_000)

    ends: ClassVar[str] = "tells how the round went; where discriminators change places, sends its own and gets another"

    @property
    def made_at_once(self) -> int:
        """How many batches the server makes for all silos."""
        return self.batches

    def sends(self, number: int) -> bool:
        """In every round after which they change places; after the last there is no use."""
        return bool(self.swap) and (number + 1) % self.swap == 0 and number + 1 < self.rounds

    def server(self, seed: int, silos: Mapping[str, int]) -> MDGanServer:
        """The server, with the generator of the common start."""
        return MDGanServer(self, seed, silos)


class MDGanServer(RemoteServer):
    """Passes discriminators on."""

    def closed(self, sent: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """Each goes to another silo: they stand in a ring, in an order drawn anew."""
        silos = sorted(sent)
        order = numpy_rng(self.seed, "swap", self.round).permutation(len(silos)).tolist()
        return {silo: sent[other] for silo, other in ring(silos, order).items()}


def ring(silos: Sequence[str], order: Sequence[int]) -> dict[str, str]:
    """Whose discriminator each silo gets: the one of who stands before it, when they stand in this order."""
    standing = [silos[number] for number in order]
    return {silo: standing[place - 1] for place, silo in enumerate(standing)}
