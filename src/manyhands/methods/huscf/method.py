"""HuSCF-GAN: a conditional GAN cut into a U over weak devices, with clusters found and weighed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from manyhands.errors import RecipeError, Refused, plain
from manyhands.formatting import names_text, size_text
from manyhands.generators.base import ImageGenerator
from manyhands.generators.gan import GanGenerator, generator_weights
from manyhands.messages.codec import activations
from manyhands.messages.codec.activations import Bits
from manyhands.messages.message import Message
from manyhands.messages.operation import COUNT, IMAGES, Operation, Payload, going_on, round_facts
from manyhands.messages.outgoing import Activations, Gradients, OutgoingData, Weights
from manyhands.messages.plan import Plan
from manyhands.methods.base import Conversation, ServerCall, TrainedModel
from manyhands.methods.huscf.order import BACK, ORDER, network_of
from manyhands.methods.huscf.server import MAX_DRAWN_IMAGES, HuSCFServer
from manyhands.methods.huscf.silo import SiloSegments
from manyhands.methods.huscf.spec import HuSCFSpec
from manyhands.models.layer_cut import LayerCuts
from manyhands.models.state_spec import state_spec_of
from manyhands.models.work import training_cost
from manyhands.silos.silo import Silo
from manyhands.tensors import named

if TYPE_CHECKING:
    from manyhands.diffusion.sample import Sampling

SAYS = {
    "make": "sends what its head of the generator makes of noise and labels, gets what its tail goes on from",
    "made": "sends what its head of the discriminator makes of made images, gets what its tail judges",
    "made-back": "sends and gets gradients of that",
    "real": "sends what its head of the discriminator makes of its own images, gets what its tail judges",
    "real-back": "sends and gets gradients of that",
    "fool": "sends what the discriminator's head now makes of the images that were made, gets what its tail judges",
    "fool-back": "sends and gets gradients of that",
    "make-back": "sends and gets gradients of the generator",
}
HEADS = {"generator": "its head of the generator", "discriminator": "its head of the discriminator"}
MADE = "made images, which have the labels of its own"
ON = {"make": "noise and the labels of its images", "made": MADE, "real": "its own images", "fool": MADE}


class HuSCF(HuSCFSpec):
    """A GAN whose middle blocks are the server's: silos keep images, labels, noise, losses and both ends.

    ``cut`` says what a silo has at home, ``cuts`` those of silos that have others, by name or by a pattern as
    ``silo-1*`` (the first that fits counts); a discriminator's head of at least ``min_head`` + 1 blocks stays at home,
    since of one layer's output images can be computed. ``clusters`` of silos are found by themselves, or so many; from
    round ``warm`` on their ends are averaged within them, by the weights n exp(-``alpha`` d). ``statistics`` are those
    of the server's norms: over all silos, or within each cluster. ``guard`` clips and noises what the discriminator's
    head sends. Each number of an activation or a gradient takes so many ``bits`` on the wire. Ends that move further
    than ``max_update_ratio`` times the median of the last round are refused.

    References:
        A Distributed Generative AI Approach for Heterogeneous Multi-Domain Environments under Data Sharing constraints,
            Tawfilis et al., 2025, arXiv 2507.12979
    """

    @property
    def hides(self) -> bool:
        """Where a guard adds noise."""
        return self.guard is not None and self.guard.noise > 0

    def silo(self, silo: Silo) -> Conversation:
        """Join, then train with the server a mini-batch at a time, and have one's ends averaged after each round."""
        answer = yield Message("join", facts={"images": len(silo.images)})
        half = SiloSegments(self, silo, dict(answer.tensors), answer.facts["round"])
        while not answer.facts["done"]:
            number, told = answer.facts["round"], {"loss": None, "seen": 0, "flops": 0, "withheld": ""}
            try:
                told |= yield from half.round(number, answer.facts["steps"])
                ends = half.ends()
            except Refused as refusal:
                half.restore()
                told["withheld"], ends = plain(str(refusal)), {}
            facts = {"round": number, "images": len(silo.images), **told}
            answer = yield Message("segments", ends, facts)
            half.take(dict(answer.tensors))

    def server(self, seed: int, silos: Mapping[str, int]) -> HuSCFServer:
        """The server, with the middle blocks of the common start."""
        if unknown := [name for name in self.cuts if not any(fnmatchcase(silo, name) for silo in silos)]:
            raise RecipeError(f"cuts names {unknown[0]!r}, which is none of the silos ({names_text(sorted(silos))})")
        return HuSCFServer(self, seed, silos)

    def plan(self) -> Plan:
        """Activations and their gradients in each mini-batch, the ends after each round; no image, no label."""
        ends = [self.ends_of(cuts) for cuts in self.every]
        gives = {**going_on(self.rounds), "steps": COUNT}
        join = Operation(
            "says how many images it has, gets its ends of both networks", "once",
            Payload(facts={"images": IMAGES}), Payload(ends[0], gives, tuple(ends[1:])),
        )  # fmt: skip
        passes = {
            op: Operation(
                SAYS[op],
                "in each mini-batch",
                self._carries(op, up=True),
                self._carries(op, up=False),
                True,
                outgoing=self._outgoing(op),
            )
            for op in ORDER
        }
        segments = Operation(
            "sends its ends of both networks, gets the mean of its cluster", f"{self.rounds} times",
            Payload(ends[0], round_facts(self.rounds), (*ends[1:], {})), Payload(ends[0], gives, tuple(ends[1:])),
            True, True,
            (Weights(of="its ends of both networks"),),
        )  # fmt: skip
        there, back = (self._carries("make", up=up, bits=32, items=MAX_DRAWN_IMAGES) for up in (True, False))
        asked = Activations(by=HEADS["generator"], on="noise and the labels that it wants drawn")
        draw = Operation(SAYS["make"], "whenever it draws", there, back, draws=True, outgoing=(asked,))
        return Plan({"join": join} | passes | {"segments": segments, "draw": draw})

    def _outgoing(self, op: str) -> tuple[OutgoingData, ...]:
        """What a pass is: the server averages the heads, so it knows all of them."""
        if op.endswith(BACK):
            return (Gradients(at=f"the input of its tail of the {network_of(op)}"),)
        real, labelled = op == "real", self.model.classes > 0
        return (Activations(by=HEADS[network_of(op)], on=ON[op], images=real, labels=labelled),)

    def cost_lines(self, silos: int, sampling: Sampling) -> list[str]:
        """What a silo with each of the cuts has at home, and what passes in an iteration."""
        batch, lines = self.training.batch, []
        for cuts in self.every:
            own = self._costs(cuts)
            lines.append(
                f"a silo cut at {cuts} has {own['weights']:,.0f} of {own['weights_whole']:,.0f} weights and does "
                f"{own['work'] / own['work_whole']:.1%} of the work; it trains in {size_text(own['memory'])} where the "
                f"whole takes {size_text(own['memory_whole'])}, sends {size_text(own['bytes'])} in an iteration of "
                f"{batch} images and gets as much"
            )
        return lines

    def upload_bytes(self, images: int) -> int:
        """The ends after each round, and activations and gradients in each iteration, at the cuts that send most."""
        sent = max(sum(self._sent(op, cuts) for op in ORDER) for cuts in self.every)
        ends = self.plan().operations["segments"].up.weight
        return self.rounds * (self.training.iterations(images) * sent + ends)

    def costs(self, silo: str, images: int, sampling: Sampling) -> dict[str, float]:
        """What a silo has at home, what it works for an image, and what it sends in an iteration."""
        return self._costs(self.of(silo))

    def _costs(self, cuts: LayerCuts) -> dict[str, float]:
        batch = self.training.batch
        found: dict[str, float] = {"bytes": sum(self._sent(op, cuts) for op in ORDER)}
        parts = {"": (cuts.has, self.ends_of(cuts)), "_whole": (lambda *_: True, state_spec_of(self.model))}
        for name, (kept, layout) in parts.items():
            work, memory = training_cost(self.model, batch, kept)
            weights = sum(like.size for like in layout.values())
            found |= {f"work{name}": work, f"memory{name}": memory, f"weights{name}": weights}
        return found

    def _sent(self, op: str, cuts: LayerCuts) -> int:
        """The bytes of one message of a whole batch."""
        wire, batch = activations.wire(self.crossing(op, cuts, up=True), self.bits), self.training.batch
        return sum(like.size * like.dtype.itemsize * (batch if None in like.shape else 1) for like in wire.values())

    def silo_generator(self, silo: Silo) -> GanGenerator | None:
        """Both ends of the generator, as the silo has them."""
        weights = generator_weights(named(silo.memory, "average."))
        return GanGenerator(self.model, weights, self.of(silo.name).generator, ema=self.ema) if weights else None

    def generator_for(
        self, silo: str, shared: TrainedModel | None, own: TrainedModel | None, ask: ServerCall
    ) -> ImageGenerator | None:
        """The ends at home, and the server's middle between them."""
        if not isinstance(own, GanGenerator):
            return None
        return replace(own, ask=lambda x: ask(Message("draw", {"x": x})).tensors["x"])

    def _carries(self, op: str, *, up: bool, bits: Bits | None = None, items: int = 0) -> Payload:
        likes = dict.fromkeys(self.crossing(op, cuts, up=up) for cuts in self.every)
        forms = [activations.wire(like, bits or self.bits) for like in likes]
        return Payload(forms[0], others=tuple(forms[1:]), items=items or self.training.batch)
