"""HuSCF-GAN: a conditional GAN that is cut into a U over weak devices, averaged within clusters of silos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import filter as matching
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from manyhands.errors import Refused, printable
from manyhands.formatting import size_text
from manyhands.generators.base import ImageGenerator
from manyhands.generators.gan import GanGenerator, generator_weights
from manyhands.generators.load import TrainedModel
from manyhands.messages.codec import activations
from manyhands.messages.codec.activations import Bits
from manyhands.messages.facts import Whole
from manyhands.messages.message import Message
from manyhands.messages.operation import IMAGES, Operation, Payload, next_round_facts, round_facts
from manyhands.messages.outgoing import Activations, Gradients, OutgoingData, Weights
from manyhands.messages.plan import Plan
from manyhands.methods import clustering
from manyhands.methods.base import AVERAGE, Conversation, ServerCall, check_cuts, check_names
from manyhands.methods.huscf.operations import (
    ADVERSARIAL_BACKWARD,
    ADVERSARIAL_FORWARD,
    BACKWARD,
    FAKE_BACKWARD,
    FAKE_FORWARD,
    GENERATOR_BACKWARD,
    GENERATOR_FORWARD,
    ORDER,
    REAL_BACKWARD,
    REAL_FORWARD,
    network_of,
)
from manyhands.methods.huscf.server import MAX_DRAWN_IMAGES, HuSCFServer
from manyhands.methods.huscf.silo import SiloSegments
from manyhands.methods.huscf.spec import HuSCFSpec
from manyhands.models.block_cost import training_cost
from manyhands.models.layer_cut import LayerCuts
from manyhands.models.state_spec import state_spec_of
from manyhands.silos.silo import Silo
from manyhands.tensors import strip_prefix

if TYPE_CHECKING:
    from manyhands.diffusion.sampling import Sampling

DISCRIMINATOR_BACKWARD = "sends the gradient at its tail's input, gets the gradient at its head's output"
DESCRIPTIONS = {
    GENERATOR_FORWARD: "sends what its head of the generator makes of noise and labels, gets the input of its tail",
    FAKE_FORWARD: "sends what its head of the discriminator makes of generated images, gets the input of its tail",
    FAKE_BACKWARD: DISCRIMINATOR_BACKWARD,
    REAL_FORWARD: "sends what its head of the discriminator makes of its own images, gets the input of its tail",
    REAL_BACKWARD: DISCRIMINATOR_BACKWARD,
    ADVERSARIAL_FORWARD: "sends what the updated head of the discriminator makes of the generated images, gets the "
    "input of its tail",
    ADVERSARIAL_BACKWARD: DISCRIMINATOR_BACKWARD,
    GENERATOR_BACKWARD: "sends the gradient at the generator's tail, gets the gradient at its head",
}
HEADS = {name: f"the first blocks of its {name}" for name in ("generator", "discriminator")}
FAKE_INPUT = "generated images, drawn for the labels of its own images"
HEAD_INPUTS = {
    GENERATOR_FORWARD: "noise and the labels of its images",
    FAKE_FORWARD: FAKE_INPUT,
    REAL_FORWARD: "its own images",
    ADVERSARIAL_FORWARD: FAKE_INPUT,
}


class HuSCF(HuSCFSpec):
    """A GAN whose middle blocks run on the server: images, labels, noise, losses and the outer blocks stay at the silo.

    Each silo has the first and the last blocks of both networks (its segments). In each mini-batch, activations go up
    and down at the two cuts, and gradients go back. After a round, the segments are averaged within each cluster of
    silos with the weights n exp(-alpha d), where n is the number of images of a silo and d the KL distance of its
    features from those of the rest of its cluster.

    References:
        A Distributed Generative AI Approach for Heterogeneous Multi-Domain Environments under Data Sharing constraints,
            Tawfilis et al., 2025, arXiv 2507.12979
    """

    @property
    def needs_secret(self) -> bool:
        """Whether a guard adds noise."""
        return self.guard is not None and self.guard.noise > 0

    def silo(self, silo: Silo) -> Conversation:
        """Join, train with the server a mini-batch at a time, and send the segments after each round."""
        answer = yield Message("join", facts={"images": len(silo.images)})
        segments = SiloSegments(self, silo, dict(answer.tensors), answer.facts["round"])
        while not answer.facts["done"]:
            number, report = answer.facts["round"], {"loss": None, "seen": 0, "flops": 0, "withheld": ""}
            try:
                report |= yield from segments.round(number, answer.facts["steps"])
                weights = segments.trained()
            except Refused as refusal:
                segments.restore()
                report["withheld"], weights = printable(str(refusal)), {}
            facts = {"round": number, "images": len(silo.images), **report}
            answer = yield Message("segments", weights, facts)
            segments.take_mean(dict(answer.tensors))

    def check_partition(self, silos: Sequence[str]) -> None:
        """Check the number of clusters, and the names in cuts."""
        clustering.check_count(self.clusters, silos)
        check_names((name for name in self.cuts if not matching(silos, name)), silos)

    def server(self, seed: int, silos: Mapping[str, int]) -> HuSCFServer:
        """Return the server, with the middle blocks of the common start."""
        check_cuts([name for name in self.cuts if not any(fnmatchcase(silo, name) for silo in silos)], silos)
        return HuSCFServer(self, seed, silos)

    def plan(self) -> Plan:
        """Activations and their gradients in each mini-batch, segments after each round; no image, no label."""
        first, *others = [self.segment_spec(cuts) for cuts in self.all_cuts]
        steps = Whole(self.training.steps or 1, self.training.iterations(IMAGES.maximum))
        facts_down = {**next_round_facts(self.rounds), "steps": steps}
        join = Operation(
            "says how many images it has, gets its segments of both networks", "once",
            Payload(facts={"images": IMAGES}), Payload(first, facts_down, tuple(others)),
        )  # fmt: skip
        passes = {
            op: Operation(
                DESCRIPTIONS[op],
                "in each mini-batch",
                self._payload(op, up=True),
                self._payload(op, up=False),
                barrier=True,
                outgoing=self._outgoing(op),
            )
            for op in ORDER
        }
        segments = Operation(
            "sends its segments of both networks, gets the mean of its cluster", f"{self.rounds} times",
            Payload(first, round_facts(self.rounds), (*others, {})), Payload(first, facts_down, tuple(others)),
            barrier=True, closes_round=True,
            outgoing=(Weights(of="its segments of both networks"),),
        )  # fmt: skip
        up, down = (self._payload(GENERATOR_FORWARD, up=up, bits=32, items=MAX_DRAWN_IMAGES) for up in (True, False))
        drawn = Activations(by=HEADS["generator"], on="noise and the labels that it wants drawn")
        draw = Operation(DESCRIPTIONS[GENERATOR_FORWARD], "whenever it draws", up, down, draws=True, outgoing=(drawn,))
        return Plan({"join": join} | passes | {"segments": segments, "draw": draw})

    def _outgoing(self, op: str) -> tuple[OutgoingData, ...]:
        """Return what leaves in a pass; the server averages the heads, so it knows them."""
        if op.endswith(BACKWARD):
            return (Gradients(at=f"the input of its tail of the {network_of(op)}"),)
        real, labelled = op == REAL_FORWARD, self.model.classes > 0
        return (Activations(by=HEADS[network_of(op)], on=HEAD_INPUTS[op], images=real, labels=labelled),)

    def cost_lines(self, silos: int, sampling: Sampling) -> list[str]:
        """Return, for each of the cuts, what a silo holds, works and sends."""
        batch, lines = self.training.batch, []
        for cuts in self.all_cuts:
            own = self._costs(cuts)
            lines.append(
                f"a silo with the cuts {cuts} has {own['weights']:,.0f} of {own['weights_whole']:,.0f} weights and "
                f"does {own['work'] / own['work_whole']:.1%} of the work; training takes {size_text(own['memory'])} of "
                f"memory, {size_text(own['memory_whole'])} for the whole network; it sends {size_text(own['bytes'])} "
                f"in an iteration of {batch} images and receives as much"
            )
        return lines

    def upload_bytes(self, images: int) -> int:
        """Return the bytes that a silo sends: passes in each iteration, segments each round, at the costliest cuts."""
        sent = max(sum(self._message_bytes(op, cuts) for op in ORDER) for cuts in self.all_cuts)
        segments = self.plan().operations["segments"].up.tensor_bytes
        return self.rounds * (self.training.iterations(images) * sent + segments)

    def costs(self, silo: str, images: int, sampling: Sampling) -> dict[str, float]:
        """Return a silo's weights, memory, work for an image and bytes in an iteration, beside the whole network's."""
        return self._costs(self.cuts_of(silo))

    def _costs(self, cuts: LayerCuts) -> dict[str, float]:
        batch = self.training.batch
        costs: dict[str, float] = {"bytes": sum(self._message_bytes(op, cuts) for op in ORDER)}
        parts = {"": (cuts.has, self.segment_spec(cuts)), "_whole": (lambda *_: True, state_spec_of(self.model))}
        for suffix, (has_block, specs) in parts.items():
            work, memory = training_cost(self.model, batch, has_block)
            weights = sum(spec.size for spec in specs.values())
            costs |= {f"work{suffix}": work, f"memory{suffix}": memory, f"weights{suffix}": weights}
        return costs

    def _message_bytes(self, op: str, cuts: LayerCuts) -> int:
        """Return the bytes of one message of a whole batch."""
        wire = activations.wire_spec(self.passed_tensor(op, cuts, up=True), self.bits)
        batch = self.training.batch
        return sum(spec.size * spec.dtype.itemsize * (batch if None in spec.shape else 1) for spec in wire.values())

    def silo_generator(self, silo: Silo) -> GanGenerator | None:
        """Return the generator's segments as the silo has them; they draw with the server's middle."""
        weights = generator_weights(strip_prefix(silo.memory, AVERAGE))
        return GanGenerator(self.model, weights, self.cuts_of(silo.name).generator, ema=self.ema) if weights else None

    def generator_for(
        self, silo: str, shared: TrainedModel | None, own: TrainedModel | None, ask: ServerCall
    ) -> ImageGenerator | None:
        """Return the silo's segments with the server's middle between them."""
        if not isinstance(own, GanGenerator):
            return None
        return replace(own, ask=lambda x: ask(Message("draw", {"x": x})).tensors["x"])

    def _payload(self, op: str, *, up: bool, bits: Bits | None = None, items: int = 0) -> Payload:
        passed = dict.fromkeys(self.passed_tensor(op, cuts, up=up) for cuts in self.all_cuts)
        first, *others = [activations.wire_spec(spec, bits or self.bits) for spec in passed]
        return Payload(first, others=tuple(others), items=items or self.training.batch)
