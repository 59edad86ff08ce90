"""PFL-GAN: silos train GANs of their own, also on images from the generators of silos whose images are alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from manyhands.data.images import Images, as_bytes, pooled
from manyhands.errors import Reason, Refused
from manyhands.generators.gan import GanGenerator, generator_weights
from manyhands.generators.load import TrainedModel
from manyhands.messages.facts import Whole
from manyhands.messages.message import Message
from manyhands.messages.operation import IMAGES, SEED, Operation, Payload, next_round_facts, round_facts
from manyhands.messages.outgoing import GeneratedImages, OutgoingData, Statistics, Weights
from manyhands.messages.plan import Plan
from manyhands.methods.base import AVERAGE, Conversation
from manyhands.methods.baselines import Local
from manyhands.methods.gan_method import GanMethod
from manyhands.methods.gans import similarity
from manyhands.methods.server import Server
from manyhands.models.state_spec import state_spec_of
from manyhands.seed import seed_of
from manyhands.silos.flops import Meter
from manyhands.silos.silo import Silo
from manyhands.spec import Float, Int
from manyhands.tensors import StateSpec, Tensors, TensorSpec, add_prefix, strip_prefix

HANDED = "handed."


class PFLGan(GanMethod):
    """Each silo trains its own GAN, as in ``Local``, also on images that the server draws for it from time to time.

    Silos send their generators and which classes they have images of. The server draws examples from each generator,
    measures the distance d of each pair of silos (0 of a silo to itself), and sends each silo images of the others'
    generators, weighed by exp(-d / temperature).

    References:
        PFL-GAN: When Client Heterogeneity Meets Generative Models in Personalized Federated Learning, Wijesinghe,
            Zhang, Ding, 2023, arXiv 2308.12454
    """

    kind: Literal["pflgan"] = Field(default="pflgan", description="The name of this method in a recipe.")
    every: Int = Field(default=5, ge=1, description="After how many rounds silos send generators and get new images.")
    share: Float = Field(
        default=0.5,
        ge=0,
        le=100,
        description="How many images a silo gets at most, as a share of its own; 0 exchanges nothing and equals Local.",
    )
    examples: Int = Field(
        default=256,
        ge=2,
        le=100_000,
        description="How many images the server draws from each generator to measure distances.",
    )
    temperature: Float = Field(
        default=0.5,
        gt=0,
        le=1e6,
        description="The distance at which a silo's weight falls to 1/e; lower values favour the most alike silos.",
    )
    keep_optimiser: bool = Field(
        default=True, description="Whether a silo keeps its optimiser's state from round to round."
    )

    def silo(self, silo: Silo) -> Conversation:
        """Train as ``Local`` does, on the silo's images and on those that it was sent."""
        pooled_silo = replace(silo)  # with the same memory
        local = self._local.silo(pooled_silo)
        next(local)
        number = int(silo.memory.get(f"{HANDED}number", torch.tensor(-1)))
        answer = yield Message("join", facts={"images": len(silo.images), "holds": number})
        while True:
            self._receive(silo, answer)
            if answer.facts["done"]:
                return
            pooled_silo.images = self._pool(silo)
            message = local.send(answer)
            facts = {**message.facts, "images": len(silo.images)}
            answer = yield Message("progress", {} if facts["withheld"] else self._sent(silo, facts["round"]), facts)

    def server(self, seed: int, silos: Mapping[str, int]) -> PFLGanServer:
        """Return the server, which trains nothing itself."""
        return PFLGanServer(self, seed, silos)

    def plan(self) -> Plan:
        """Generators up and generated images down, every few rounds."""
        trades = any(self.trades(number) for number in range(self.rounds))
        facts_down = {**next_round_facts(self.rounds), "seed": SEED, "handed": Whole(-1, self.rounds)}
        others: tuple[StateSpec, ...] = ({},) if trades else ()
        down = Payload(self.handed_spec if trades else {}, facts_down, others)
        says = "sends its loss"
        if trades:
            says += (
                f"; after every {self.every} rounds sends its generator and which classes it has images of, "
                "gets images from the generators of other silos"
            )
        join = Payload(facts={"images": IMAGES, "holds": Whole(-1, self.rounds)})
        up = Payload(self.sent_spec if trades else {}, round_facts(self.rounds), others)
        return Plan(
            {
                "join": Operation("says how many images it has", "once", join, down),
                "progress": Operation(
                    says,
                    f"{self.rounds} times",
                    up,
                    down,
                    barrier=True,
                    closes_round=True,
                    outgoing=self._outgoing if trades else (),
                ),
            }
        )

    def silo_generator(self, silo: Silo) -> TrainedModel | None:
        """Return the GAN that the silo has trained."""
        return self._local.silo_generator(silo)

    def trades(self, number: int) -> bool:
        """Return whether generators are sent after this round."""
        return self.share > 0 and (number + 1) % self.every == 0 and number + 1 < self.rounds

    @property
    def _outgoing(self) -> tuple[OutgoingData, ...]:
        """What leaves: a generator, images drawn from it, and which classes the silo has."""
        often = f"after every {self.every} rounds"
        classes = (Statistics(of=("which classes it has images of",), often=often),) if self.model.classes else ()
        weights = Weights(of="its generator", training=self.training, often=often)
        return (weights, GeneratedImages(to="the server and other silos", often=often), *classes)

    @property
    def sent_spec(self) -> StateSpec:
        """The tensors that a silo sends: its generator, and which classes it has images of."""
        known = {"known": TensorSpec((self.model.classes,), torch.bool)} if self.model.classes else {}
        weights = state_spec_of(self.model)
        return {name: spec for name, spec in weights.items() if name.startswith("generator.")} | known

    @property
    def handed_spec(self) -> StateSpec:
        """The tensors that a silo gets: generated images as bytes, and their labels."""
        image = TensorSpec((None, self.model.channels, self.model.size, self.model.size), torch.uint8)
        return {"images": image} | ({"labels": TensorSpec((None,), torch.int64)} if self.model.classes else {})

    @property
    def _local(self) -> Local:
        fields = {name: getattr(self, name) for name in ("model", "training", "rounds", "ema", "keep_optimiser")}
        return Local(**fields)

    def _sent(self, silo: Silo, number: int) -> Tensors:
        if not self.trades(number):
            return {}
        weights = generator_weights(strip_prefix(silo.memory, AVERAGE))
        if not self.model.classes or silo.images.labels is None:
            return weights
        return weights | {"known": torch.bincount(silo.images.labels, minlength=self.model.classes) > 0}

    def _receive(self, silo: Silo, answer: Message) -> None:
        if answer.tensors:
            handed = dict(answer.tensors) | {"number": torch.tensor(answer.facts["handed"])}
            silo.memory.keep(add_prefix(handed, HANDED))

    def _pool(self, silo: Silo) -> Images:
        """Return the silo's images together with those that it was sent."""
        handed = strip_prefix(silo.memory, HANDED)
        if not handed or not len(handed["images"]):
            return silo.images
        own = silo.images if self.model.classes else replace(silo.images, labels=None)
        return pooled([own, Images(handed["images"], handed.get("labels"), own.classes)])


class PFLGanServer(Server):
    """Counts rounds, and every few rounds draws images from the generators that silos sent.

    Args:
        method: The fields of the run.
        seed: The seed of the run.
        silos: The names of all silos.
    """

    def __init__(self, method: PFLGan, seed: int, silos: Collection[str]) -> None:
        self.method, self.seed, self.silos = method, seed, sorted(silos)
        self.handed: dict[str, Tensors] = {}
        self.meter = Meter({})

    def handle(self, silo: str, message: Message) -> Message:
        """Send a silo that joins the images that were drawn for it last, if it does not have them."""
        missed = self._number(silo) > message.facts["holds"]
        return Message("join", self._images(silo) if missed else {}, self._facts(silo))

    def validate(self, silo: str, message: Message) -> None:
        """Refuse generators that are not due, that are not finite, or that know no class."""
        if message.tensors and not self.method.trades(self.round):
            raise Refused(Reason.UNEXPECTED_TENSOR, f"{silo} sends a generator, but none is due after this round")
        self.method.check_weights(
            {name: tensor for name, tensor in message.tensors.items() if tensor.is_floating_point()}
        )
        if "known" in message.tensors and not bool(message.tensors["known"].any()):
            raise Refused(Reason.WRONG_FACTS, f"{silo} sends a generator that knows no class")

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Close the round, and send images to silos whose generators came."""
        sent = {silo: messages[silo] for silo in sorted(messages) if messages[silo].tensors}
        self.contributions = {}
        if sent:
            self._draw_for_silos(sent)
        updated = {silo for silo in messages if sent and self._number(silo) == self.round}
        self.round, self.flops = self.round + 1, self.meter.flops
        return {
            silo: Message(op, self._images(silo) if silo in updated else {}, self._facts(silo)) for silo in messages
        }

    def state_dict(self) -> Tensors:
        """Return the images that were drawn for silos last."""
        flat = [add_prefix(handed, f"{silo}/") for silo, handed in self.handed.items()]
        return {name: tensor for tensors in flat for name, tensor in tensors.items()}

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a state of ``state_dict``."""
        kept = {silo: strip_prefix(state, f"{silo}/") for silo in self.silos}
        self.handed = {silo: handed for silo, handed in kept.items() if handed}

    def _draw_for_silos(self, sent: Mapping[str, Message]) -> None:
        """Draw images for each silo from the others' generators, more from those whose images are more alike."""
        generators, known = {}, {}
        for silo, message in sent.items():
            weights = generator_weights(dict(message.tensors))
            generators[silo] = GanGenerator(self.method.model, weights, device=str(self.device))
            known[silo] = message.tensors["known"].nonzero().flatten() if "known" in message.tensors else None
        examples = {
            silo: self._draw(generators[silo], known[silo], self.method.examples, silo)[0] for silo in generators
        }
        examples = {silo: images for silo, images in examples.items() if bool(images.isfinite().all())}
        apart = similarity.distances(examples) if len(examples) > 1 else {}
        for silo, far in apart.items():
            weight = similarity.shares(far, self.method.temperature)
            self.contributions = {
                **self.contributions,
                silo: {"distance": sum(far.values()) / (len(far) - 1), "weight": weight[silo]},
            }
            most, parts = self.method.share * sent[silo].facts["images"], []
            for other in sorted(far.keys() - {silo}):
                count = round(most * weight[other])
                parts.append(self._draw(generators[other], known[other], count, other, silo))
            drawn = {"images": as_bytes(torch.cat([images for images, _ in parts]))}
            labels = {"labels": torch.cat([labels for _, labels in parts])} if self.method.model.classes else {}
            self.handed[silo] = drawn | labels | {"number": torch.tensor(self.round)}

    def _draw(self, generator: GanGenerator, known: Tensor | None, count: int, *names: str) -> tuple[Tensor, Tensor]:
        """Draw images of a silo's classes in turn, and return them with their labels; ``names`` enter the seed."""
        turns = torch.arange(count) % (1 if known is None else len(known))
        labels = turns if known is None else known[turns]
        if not count:
            model = self.method.model
            return torch.zeros(0, model.channels, model.size, model.size), labels
        with self.meter.work(self.method.model, "draw", count):
            seed = seed_of(self.seed, "made", self.round, *names)
            return generator.sample(labels=labels.tolist(), seed=seed), labels

    def _number(self, silo: str) -> int:
        return int(self.handed[silo]["number"]) if silo in self.handed else -1

    def _images(self, silo: str) -> Tensors:
        return {name: tensor for name, tensor in self.handed.get(silo, {}).items() if name != "number"}

    def _facts(self, silo: str) -> dict[str, object]:
        done = self.round >= self.method.rounds
        return {"round": self.round, "done": done, "seed": self.seed, "handed": self._number(silo)}
