"""MD-GAN: one generator on the server, discriminators that move from silo to silo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from manyhands.methods.gans.discriminator_silos import DiscriminatorSilosMethod
from manyhands.methods.gans.generator_server import GeneratorServer
from manyhands.seed import numpy_rng
from manyhands.spec import Int
from manyhands.tensors import Tensors


class MDGan(DiscriminatorSilosMethod):
    """One generator on the server and a discriminator at each silo, which are swapped between silos.

    In each mini-batch the server generates several batches of images. A silo trains its discriminator on one of them,
    and sends the generator's gradient at the next.

    References:
        MD-GAN: Multi-Discriminator Generative Adversarial Networks for Distributed Datasets, Hardy, Le Merrer,
            Sericola, 2018, arXiv 1811.03850
    """

    kind: Literal["mdgan"] = Field(default="mdgan", description="The name of this method in a recipe.")
    swap: Int = Field(
        default=1, ge=0, description="After how many rounds silos swap their discriminators at random; 0 never does."
    )
    batches: Int = Field(
        default=2, ge=1, le=10_000, description="How many batches of images the server generates in each mini-batch."
    )

    round_end: ClassVar[str] = "reports the round; where discriminators are swapped, sends its own and gets another"

    @property
    def made_at_once(self) -> int:
        """How many batches the server generates for all silos."""
        return self.batches

    def sends(self, number: int) -> bool:
        """Return whether discriminators are swapped after a round; never after the last."""
        return bool(self.swap) and (number + 1) % self.swap == 0 and number + 1 < self.rounds

    def server(self, seed: int, silos: Mapping[str, int]) -> MDGanServer:
        """Return the server, with the generator of the common start."""
        return MDGanServer(self, seed, silos)


class MDGanServer(GeneratorServer):
    """Passes discriminators on to other silos."""

    def closed(self, sent: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """Pass each discriminator to the next silo in a ring, whose order is drawn for each swap."""
        silos = sorted(sent)
        order = numpy_rng(self.seed, "swap", self.round).permutation(len(silos)).tolist()
        return {silo: sent[other] for silo, other in ring(silos, order).items()}


def ring(silos: Sequence[str], order: Sequence[int]) -> dict[str, str]:
    """Return whose discriminator each silo gets: that of the silo before it in the given order."""
    ordered = [silos[number] for number in order]
    return {silo: ordered[place - 1] for place, silo in enumerate(ordered)}
