"""PFL-GAN: silos train GANs of their own, and refine them on images made by the generators of silos that are alike."""

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
from manyhands.messages.facts import Whole
from manyhands.messages.message import Message
from manyhands.messages.operation import IMAGES, SEED, Operation, Payload, next_round_facts, round_facts
from manyhands.messages.outgoing import GeneratedImages, OutgoingData, Statistics, Weights
from manyhands.messages.plan import Plan
from manyhands.methods.base import Conversation, Server, TrainedModel
from manyhands.methods.baselines import Local
from manyhands.methods.gan_method import GanMethod
from manyhands.methods.gans import alike
from manyhands.models.state_spec import state_spec_of
from manyhands.seed import seed_of
from manyhands.silos.flops import Meter
from manyhands.silos.silo import Silo
from manyhands.spec import Float, Int
from manyhands.tensors import StateSpec, Tensors, TensorSpec, add_prefix, strip_prefix

HANDED = "handed."


class PFLGan(GanMethod):
    """Each silo trains its own GAN, as in ``Local``; every ``every`` rounds the server makes images for it.

    Silos send their generators and which classes they have images of. The server draws ``examples`` from each, and
    hands out images of the others, more of those that are more alike: exp(-d / ``temperature``), d their distance, 0 to
    itself. A silo with n images trains on at most ``share`` n more; 0 gives ``Local``.

    References:
        PFL-GAN: When Client Heterogeneity Meets Generative Models in Personalized Federated Learning, Wijesinghe,
            Zhang, Ding, 2023, arXiv 2308.12454
    """

    kind: Literal["pflgan"] = "pflgan"
    every: Int = Field(default=5, ge=1)
    share: Float = Field(default=0.5, ge=0, le=100)
    examples: Int = Field(default=256, ge=2, le=100_000)
    temperature: Float = Field(default=0.5, gt=0, le=1e6)
    keep_optimiser: bool = True

    def silo(self, silo: Silo) -> Conversation:
        """Train as ``Local`` does, on what the silo has and what it was handed."""
        mine = replace(silo)
        alone = self._local.silo(mine)
        next(alone)
        number = int(silo.memory.get(f"{HANDED}number", torch.tensor(-1)))
        answer = yield Message("join", facts={"images": len(silo.images), "holds": number})
        while True:
            self._receive(silo, answer)
            if answer.facts["done"]:
                return
            mine.images, mine.memory = self._pool(silo), silo.memory
            said = alone.send(answer)
            silo.memory = mine.memory
            facts = {**said.facts, "images": len(silo.images)}
            answer = yield Message("progress", {} if facts["withheld"] else self._sent(silo, facts["round"]), facts)

    def server(self, seed: int, silos: Mapping[str, int]) -> PFLGanServer:
        """A server that trains nothing."""
        return PFLGanServer(self, seed, silos)

    def plan(self) -> Plan:
        """Generators up, made images down, every so many rounds."""
        trades = any(self.trades(number) for number in range(self.rounds))
        told = {**next_round_facts(self.rounds), "seed": SEED, "handed": Whole(-1, self.rounds)}
        others: tuple[StateSpec, ...] = ({},) if trades else ()
        gives = Payload(self.handed_layout if trades else {}, told, others)
        says = "tells its loss"
        if trades:
            says += (
                f"; after every {self.every} rounds sends its generator and which classes it has images of, "
                "gets images that generators of other silos made"
            )
        hello = Payload(facts={"images": IMAGES, "holds": Whole(-1, self.rounds)})
        takes = Payload(self.sent_layout if trades else {}, round_facts(self.rounds), others)
        return Plan(
            {
                "join": Operation("says how many images it has", "once", hello, gives),
                "progress": Operation(
                    says, f"{self.rounds} times", takes, gives, True, True, self._outgoing if trades else ()
                ),
            }
        )

    def silo_generator(self, silo: Silo) -> TrainedModel | None:
        """What the silo has trained for itself."""
        return self._local.silo_generator(silo)

    def trades(self, number: int) -> bool:
        """Whether generators are sent after this round."""
        return self.share > 0 and (number + 1) % self.every == 0 and number + 1 < self.rounds

    @property
    def _outgoing(self) -> tuple[OutgoingData, ...]:
        """A generator, what is drawn from it, and which classes it is for."""
        often = f"after every {self.every} rounds"
        classes = (Statistics(of=("which classes it has images of",), often=often),) if self.model.classes else ()
        weights = Weights(of="its generator", training=self.training, often=often)
        return (weights, GeneratedImages(to="the server and other silos", often=often), *classes)

    @property
    def sent_layout(self) -> StateSpec:
        """A generator, and which classes it knows."""
        known = {"known": TensorSpec((self.model.classes,), torch.bool)} if self.model.classes else {}
        every = state_spec_of(self.model)
        return {name: like for name, like in every.items() if name.startswith("generator.")} | known

    @property
    def handed_layout(self) -> StateSpec:
        """Images that were made, as bytes."""
        image = TensorSpec((None, self.model.channels, self.model.size, self.model.size), torch.uint8)
        return {"images": image} | ({"labels": TensorSpec((None,), torch.int64)} if self.model.classes else {})

    @property
    def _local(self) -> Local:
        told = {name: getattr(self, name) for name in ("model", "training", "rounds", "ema", "keep_optimiser")}
        return Local(**told)

    def _sent(self, silo: Silo, number: int) -> Tensors:
        if not self.trades(number):
            return {}
        weights = generator_weights(strip_prefix(silo.memory, "average."))
        if not self.model.classes or silo.images.labels is None:
            return weights
        return weights | {"known": torch.bincount(silo.images.labels, minlength=self.model.classes) > 0}

    def _receive(self, silo: Silo, answer: Message) -> None:
        if answer.tensors:
            told = dict(answer.tensors) | {"number": torch.tensor(answer.facts["handed"])}
            silo.memory = silo.memory | add_prefix(told, HANDED)

    def _pool(self, silo: Silo) -> Images:
        """What the silo has, and what it was handed."""
        handed = strip_prefix(silo.memory, HANDED)
        if not handed or not len(handed["images"]):
            return silo.images
        own = silo.images if self.model.classes else replace(silo.images, labels=None)
        return pooled([own, Images(handed["images"], handed.get("labels"), own.classes)])


class PFLGanServer(Server):
    """Counts rounds, and now and then draws from generators that it was sent."""

    def __init__(self, method: PFLGan, seed: int, silos: Collection[str]) -> None:
        self.method, self.seed, self.silos = method, seed, sorted(silos)
        self.handed: dict[str, Tensors] = {}
        self.meter = Meter({})

    def handle(self, silo: str, message: Message) -> Message:
        """Join: a silo gets what was made for it last, if it has not got that."""
        missed = self._number(silo) > message.facts["holds"]
        return Message("join", self._images(silo) if missed else {}, self._facts(silo))

    def validate(self, silo: str, message: Message) -> None:
        """A generator knows a class at least."""
        if message.tensors and not self.method.trades(self.round):
            raise Refused(Reason.UNEXPECTED_TENSOR, f"{silo} sends a generator, none is asked for after this round")
        self.method.check_weights({name: t for name, t in message.tensors.items() if t.is_floating_point()})
        if "known" in message.tensors and not bool(message.tensors["known"].any()):
            raise Refused(Reason.WRONG_FACTS, f"the generator of {silo} knows no class")

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Close the round, and hand out images where generators came."""
        sent = {silo: messages[silo] for silo in sorted(messages) if messages[silo].tensors}
        self.weighed = {}
        if sent:
            self._hand_out(sent)
        anew = {silo for silo in messages if sent and self._number(silo) == self.round}
        self.round, self.flops = self.round + 1, self.meter.flops
        return {silo: Message(op, self._images(silo) if silo in anew else {}, self._facts(silo)) for silo in messages}

    def state_dict(self) -> Tensors:
        """What was made for silos last."""
        flat = [add_prefix(handed, f"{silo}/") for silo, handed in self.handed.items()]
        return {name: tensor for each in flat for name, tensor in each.items()}

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from there."""
        kept = {silo: strip_prefix(state, f"{silo}/") for silo in self.silos}
        self.handed = {silo: handed for silo, handed in kept.items() if handed}

    def _hand_out(self, sent: Mapping[str, Message]) -> None:
        """To each silo images of the others, by how alike their examples are."""
        forgers, known = {}, {}
        for silo, message in sent.items():
            weights = generator_weights(dict(message.tensors))
            forgers[silo] = GanGenerator(self.method.model, weights, device=str(self.device))
            known[silo] = message.tensors["known"].nonzero().flatten() if "known" in message.tensors else None
        examples = {silo: self._draw(forgers[silo], known[silo], self.method.examples, silo)[0] for silo in forgers}
        examples = {silo: images for silo, images in examples.items() if bool(images.isfinite().all())}
        apart = alike.distances(examples) if len(examples) > 1 else {}
        for silo, far in apart.items():
            weight = alike.shares(far, self.method.temperature)
            self.weighed = {
                **self.weighed,
                silo: {"distance": sum(far.values()) / (len(far) - 1), "weight": weight[silo]},
            }
            most, parts = self.method.share * sent[silo].facts["images"], []
            for other in sorted(far.keys() - {silo}):
                count = round(most * weight[other])
                parts.append(self._draw(forgers[other], known[other], count, other, silo))
            made = {"images": as_bytes(torch.cat([images for images, _ in parts]))}
            labels = {"labels": torch.cat([labels for _, labels in parts])} if self.method.model.classes else {}
            self.handed[silo] = made | labels | {"number": torch.tensor(self.round)}

    def _draw(self, forger: GanGenerator, known: Tensor | None, count: int, *whose: str) -> tuple[Tensor, Tensor]:
        """Images of the classes that a silo has, in turn, and their labels."""
        turns = torch.arange(count) % (1 if known is None else len(known))
        labels = turns if known is None else known[turns]
        if not count:
            model = self.method.model
            return torch.zeros(0, model.channels, model.size, model.size), labels
        with self.meter.work(self.method.model, "draw", count):
            seed = seed_of(self.seed, "made", self.round, *whose)
            return forger.sample(labels=labels.tolist(), seed=seed), labels

    def _number(self, silo: str) -> int:
        return int(self.handed[silo]["number"]) if silo in self.handed else -1

    def _images(self, silo: str) -> Tensors:
        return {name: tensor for name, tensor in self.handed.get(silo, {}).items() if name != "number"}

    def _facts(self, silo: str) -> dict[str, object]:
        done = self.round >= self.method.rounds
        return {"round": self.round, "done": done, "seed": self.seed, "handed": self._number(silo)}
