"""Federated averaging of a diffusion model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from manyhands import leaves
from manyhands.codec.codec import BFloat16, Float16, Float32, most_bytes
from manyhands.codec.updates import Updates
from manyhands.codec.weights import Weights
from manyhands.diffusion.sample import Sampling
from manyhands.errors import Reason, RecipeError, Refused
from manyhands.facts import Whole
from manyhands.message import Message
from manyhands.methods.denoising import NOTHING, Denoising, Trained, sick, update_facts
from manyhands.methods.handout import Downlink, Handout
from manyhands.methods.method import Conversation, Server
from manyhands.methods.proximal import Mode, Proximal
from manyhands.methods.server_optimizer import Momentum, ServerAdam
from manyhands.methods.sharing import ALL, SHARED, WAYS, Share, asked, uploads
from manyhands.methods.update_length import LENGTHS, MAX_RATIO, MaxUpdateRatio, UpdateLengths
from manyhands.models.autoencoder import Autoencoder, TrainedAutoencoder
from manyhands.models.forger import Forger
from manyhands.models.gan import Gan
from manyhands.models.generator import Generator
from manyhands.models.layout import layout_of, weights_of
from manyhands.plan import IMAGES, RESTING, WORD, Carries, Operation, Plan, going_on, round_facts, size_text
from manyhands.seed import numpy_rng, torch_rng
from manyhands.silo import Silo
from manyhands.spec import Float, Int
from manyhands.tensors import (
    Layout,
    Tensors,
    WeightedMean,
    named,
    prefixed,
    running_average,
    snapshot,
    zeros,
)
from manyhands.training import load_optimiser_state, optimiser_state

AnyCodec = Annotated[Float32 | Float16 | BFloat16 | Weights | Updates, Field(discriminator="kind")]
AnyServerOptimizer = Annotated[Momentum | ServerAdam, Field(discriminator="kind")]
Facts = dict[str, Any]
HELD, LEFT, AVERAGE = "held.", "left.", "average."


class FedAvg(Denoising):
    """Each round, silos train the shared network on their own images, and the server averages what they send.

    The mean is weighted by the silos' numbers of images. ``participants`` silos are drawn each round, without
    replacement (None: all). ``keep_optimiser`` keeps each silo's optimiser over rounds, at the silo. ``proximal`` is
    the mu of FedProx and FedDM-prox, ``up`` and ``down`` say how weights travel, ``share`` which parts of the U-Net
    do, and ``server_optimizer`` what the server makes of the mean. Where it is ``kept``, silos get the last mean, too,
    and keep what they got as a generator of their own. Silos always go on from what they were sent last,
    never from its average over rounds. An update that is longer than ``max_update_ratio`` times the median of the last
    round, and than the weights themselves, is refused; 0 takes every finite one.

    References:
        Communication-Efficient Learning of Deep Networks from Decentralized Data, McMahan et al., 2017,
            arXiv 1602.05629
        Federated Learning with Diffusion Models for Privacy-Sensitive Vision Tasks, Tun et al., 2023, arXiv 2311.16538
        FedGAN: Federated Generative Adversarial Networks for Distributed Data, Rasouli, Sun, Rajagopal, 2020, arXiv
            2006.07228
    """

    kind: Literal["fedavg"] = "fedavg"
    participants: Int | None = Field(default=None, ge=1)
    keep_optimiser: bool = False
    proximal: Float = Field(default=0.0, ge=0, le=1e30)
    proximal_mode: Mode = "coupled"
    up: AnyCodec = Float32()
    down: AnyCodec = Float32()
    share: Share = "all"
    server_optimizer: AnyServerOptimizer | None = None
    kept: bool = False
    max_update_ratio: MaxUpdateRatio = MAX_RATIO

    @field_validator("server_optimizer")
    @classmethod
    def _no_step_of_its_own(cls, told: AnyServerOptimizer | None) -> AnyServerOptimizer | None:
        return None if told == Momentum(rate=1.0, momentum=0.0) else told

    @field_validator("up", "down", "server_optimizer", mode="before")
    @classmethod
    def _by_name(cls, told: Any) -> Any:
        return {"kind": told} if isinstance(told, str) else told

    @model_validator(mode="after")
    def _has_what_is_fine(self) -> Self:
        for codec in (self.up, self.down):
            words = codec.fine if isinstance(codec, Updates) and codec.fine != Updates().fine else ()
            if bad := [word for word in words if not word or not any(word in name for name in layout_of(self.model))]:
                raise ValueError(f"fine has {bad[0]!r}, which is in no name of the model's weights")
        return self

    @model_validator(mode="after")
    def _nothing_pulls_a_gan(self) -> Self:
        if isinstance(self.model, Gan) and self.proximal:
            raise ValueError("proximal is for one loss; a GAN has two")
        return self

    @model_validator(mode="after")
    def _whole_autoencoder(self) -> Self:
        if isinstance(self.model, Autoencoder) and self.share != "all":
            raise ValueError(f"share is {self.share!r}, but an autoencoder is shared whole")
        return self

    def silo(self, silo: Silo) -> Conversation:
        """Join, then train whenever weights come, until the server says that it is done."""
        yield from self.prepared(silo)
        answer, again = (yield self._hello(silo)), None
        while not answer.facts["done"]:
            before = silo.memory
            try:  # no name is given to an update: a silo that waits must not hold on to it
                answer, again = (yield again or self._say(silo, answer)), None
            except Refused as refusal:
                stale = refusal.reason is Reason.STALE_ROUND
                if again is not None and not stale:
                    raise
                silo.memory = before  # as if nothing had been sent
                again = self._hello(silo) if stale else self._withheld(silo, answer, str(refusal))
        if answer.tensors:
            self._receive(silo, answer)

    def server(self, seed: int, silos: Mapping[str, int]) -> Server:
        """The server, with a freshly initialised network."""
        if (self.participants or 1) > len(silos):
            raise RecipeError(f"participants is {self.participants}, there are {len(silos)} silos")
        return self.prepared_server(FedAvgServer(self, seed, silos))

    def plan(self) -> Plan:
        """Weights down and up, once a round; no image, no label."""
        link = self.downlink
        holds: Facts = {"holds": Whole(-1, self.rounds)} if link.tracks else {}
        told: Facts = {**going_on(self.rounds)} | ({"form": WORD} if link.tracks else {})
        step, *others = link.forms().values()
        gives = Carries(step, told | ({"send": WORD} if self.share == "usplit" else {}), (*others, {}))
        sent, *halves = (self.up.wire(self.layout_of(parts)) for parts in uploads(self.share))
        takes = Carries(sent, {**round_facts(self.rounds), **holds}, (*halves, {}))
        whose = f"{self.participants} silos a round" if self.participants else "every silo, every round"
        return Plan(
            self.preparations()
            | {
                "join": Operation(
                    "says how many images it has, gets the model",
                    "once",
                    Carries(facts={"images": IMAGES} | holds),
                    gives,
                ),
                "update": Operation(
                    f"sends {'its model' if not self.personal else 'the shared parts'} after local training, gets the "
                    f"mean ({whose})",
                    f"{self.rounds} times",
                    takes,
                    gives,
                    group=True,
                    closes_round=True,
                    leaves=(self._leaves,),
                ),
            },
        )

    def sizes(self, silos: int, sampling: Sampling) -> list[str]:
        """The parts of the network, and about what a round weighs against all weights in float32."""
        count = min(self.participants or silos, silos)
        parts = {part: sum(like.size for like in self.layout_of(part).values()) for part in ALL.split("+")}
        every = sum(parts.values())
        shared = most_bytes(self.up, self.layout_of(SHARED[self.share]))
        up = shared / 2 if self.share == "usplit" else shared
        down = self.downlink.bytes(count / silos)
        shares = ", ".join(f"{size / every:.1%} {part}" for part, size in parts.items() if size)
        plain = up + down == 8 * every
        saving = "all weights in float32" if plain else f"{8 * every / (up + down):.2f} x fewer bytes than in float32"
        return [
            f"{every:,} weights: {shares}",
            *self.prepared_sizes(),
            f"a round of {count} silo{'s' * (count != 1)}: {size_text(count * up)} up and {size_text(count * down)} "
            f"down, {saving}",
            f"all {self.rounds:,} rounds: {size_text(self.rounds * count * (up + down))}",
        ]

    def own_generator(self, silo: Silo) -> Generator | Forger | TrainedAutoencoder | None:
        """Where parts stay at home or all is kept there: what it got last, with its private parts."""
        return self.own_generator_of(silo, named(silo.memory, AVERAGE))

    @property
    def downlink(self) -> Downlink:
        """How weights come to silos."""
        return Downlink(self.down, layout_of(self.model), self.layout_of(SHARED[self.share]))

    @property
    def _leaves(self) -> leaves.Weights:
        """What an update is: weights that the server reads."""
        of = {"gan": "both of its networks", "autoencoder": "its autoencoder"}.get(self.model.kind, "its network")
        parts = " and ".join(f"the {WAYS[part]}" for part in SHARED[self.share].split("+"))
        kept = tuple(WAYS[part] for part in self._private)
        return leaves.Weights(of=f"{parts} of {of}" if kept else of, training=self.training, kept=kept)

    @property
    def _private(self) -> list[str]:
        return [part for part in ALL.split("+") if part not in SHARED[self.share].split("+")]

    @property
    def personal(self) -> bool:
        """Whether parts of the network stay at their silo."""
        return SHARED[self.share] != ALL

    def behind(self) -> list[object]:
        """With what pulls, and what shares."""
        return [*super().behind(), *([Proximal] if self.proximal else []), *([asked] if self.share != "all" else [])]

    def layout_of(self, parts: str) -> Layout:
        """The names, shapes and types of the weights in parts of the network."""
        wanted = parts.split("+")
        return {name: like for name, like in layout_of(self.model).items() if self.model.part_of(name) in wanted}

    def _hello(self, silo: Silo) -> Message:
        return Message("join", facts={"images": len(silo.images)} | self._holds(silo))

    def _holds(self, silo: Silo) -> Facts:
        """The round whose model a silo holds, where the server must know."""
        return {"holds": int(silo.memory.get("holds", -1))} if self.downlink.tracks else {}

    def _withheld(self, silo: Silo, answer: Message, why: str, trained: Trained = NOTHING) -> Message:
        facts = update_facts(silo, answer, trained._replace(loss=None), why)
        return Message("update", {}, facts | self._holds(silo))

    def _say(self, silo: Silo, answer: Message) -> Message:
        return self._update(silo, answer) if answer.tensors else self._withheld(silo, answer, RESTING)

    def _receive(self, silo: Silo, answer: Message) -> Tensors:
        """The network's weights as they are at the silo now; kept, where it must know them later."""
        link, number = self.downlink, answer.facts["round"]
        weights = link.received(answer.facts.get("form", "step"), answer.tensors, named(silo.memory, HELD))
        if not (link.tracks or self.kept):
            return weights
        anew = number != int(silo.memory.get("holds", -1))
        silo.memory = silo.memory | prefixed(weights, HELD) | {"holds": torch.tensor(number)}
        if (self.personal or self.kept) and anew:
            count = int(silo.memory.get("receipts", 0))
            average = running_average(named(silo.memory, AVERAGE), weights, self.ema, count)
            silo.memory |= prefixed(average, AVERAGE) | {"receipts": torch.tensor(count + 1)}
        return weights

    def _update(self, silo: Silo, answer: Message) -> Message:
        """One round at the silo: load what came, train, send what came of it."""
        before = silo.memory
        received = self._receive(silo, answer)
        network = silo.bench.network(self.model)
        network.load_state_dict(received)
        number = answer.facts["round"]
        optimiser = self.training.optimiser_of(network, self.progress(number))
        if self.keep_optimiser:
            load_optimiser_state(optimiser, silo.memory)
        pull = Proximal(network, self.proximal, self.proximal_mode) if self.proximal else None
        trained = self.train_round(network, optimiser, silo, number, pull)
        weights = snapshot(network.state_dict())
        if why := sick(trained, weights):
            silo.memory = _with_average_of(before, silo.memory)
            return self._withheld(silo, answer, why, trained)
        parts = answer.facts.get("send", SHARED[self.share])
        sent = {name: weights[name] for name in self.layout_of(parts)}
        rng = torch_rng(silo.seed, silo.name, "up", number)
        wire, left = self.up.encode(sent, received, named(silo.memory, LEFT), rng)
        private = {name: own for name, own in weights.items() if self.personal and name not in sent}
        kept = optimiser_state(optimiser) if self.keep_optimiser else {}
        silo.memory = silo.memory | kept | prefixed(left, LEFT) | prefixed(private, HELD)
        return Message("update", wire, update_facts(silo, answer, trained) | self._holds(silo))


def _with_average_of(before: Tensors, memory: Tensors) -> Tensors:
    """A silo's memory without what it was sent last in its average: weights that nobody can train are in no average."""
    averaged = (AVERAGE, "receipts")
    kept = {name: tensor for name, tensor in memory.items() if not name.startswith(averaged)}
    return kept | {name: tensor for name, tensor in before.items() if name.startswith(averaged)}


class FedAvgServer(Server):
    """Holds the model, and while a round is open the sum of the updates that came."""

    trains = False

    def __init__(self, method: FedAvg, seed: int, silos: Collection[str]) -> None:
        self.method, self.seed, self.silos = method, seed, sorted(silos)
        begun = weights_of(method.model, seed)
        self.handout = Handout(method.downlink, seed, begun)
        self.average = self.handout.given
        self.memory: Tensors = {}
        self.updates = 0
        self.mean = WeightedMean()
        self.lengths: UpdateLengths = UpdateLengths(method.max_update_ratio)
        self._went_back = False
        self._asked = self._draw()

    @property
    def weights(self) -> Tensors:
        """The server's own weights."""
        return self.handout.weights

    def on(self, silo: str, message: Message) -> Message:
        """Join: the model of the open round, for those who take part in it."""
        return self._answer(silo, message)

    def admit(self, silo: str, message: Message) -> None:
        """An update is refused from a silo that does not take part in the round, and where it is far too long."""
        if not message.tensors:
            return
        if silo not in self._asked:
            raise Refused(Reason.NOT_ASKED, f"{silo} does not take part in round {self.round}")
        self.method.up.check(message.tensors, self.method.layout_of(self._asked[silo]))
        update, images, relative = self._decoded(silo, message), message.facts["images"], self.method.up.relative
        self.lengths.check(silo, update, self.handout.given, images, relative=relative)

    def fold(self, silo: str, message: Message) -> Message:
        """Add an update to the sum and keep only what it says."""
        if message.tensors:
            self.mean.add(self._decoded(silo, message), message.facts["images"])
        return Message(message.op, {}, message.facts)

    def on_group(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Close the round, and give what came of it to those who take part in the next one."""
        mean, self.mean = self.mean.value(), WeightedMean()
        self.handout = self.handout.anew() if self._went_back else self.handout.next(self._moved(mean))
        self.lengths.close()
        self.round, self._went_back = self.round + 1, False
        self._asked = self._draw()
        if mean:
            self.average = running_average(self.average, self.handout.given, self.method.ema, self.updates)
            self.updates += 1
        return {silo: self._answer(silo, message) for silo, message in messages.items()}

    def go_back(self, state: Tensors) -> str | None:
        """To the weights of an earlier round; whoever moved the last mean most takes no part in the next round."""
        self._went_back = True
        return super().go_back({name: tensor for name, tensor in state.items() if not name.startswith("base.")})

    def generator(self) -> Generator | Forger | TrainedAutoencoder | None:
        """The network that all share, as silos receive it; there is none where parts of it stay with them."""
        return None if self.method.personal else self.method.generator_of(self.average)

    def state_dict(self) -> Tensors:
        """The model, its average over rounds, how many means went into that, and what optimiser and codec keep."""
        average = self.average if self.method.ema else {}
        kept = {"weights.": self.weights, "base.": self.handout.base, AVERAGE: average, "memory.": self.memory}
        kept |= {LENGTHS: self.lengths.state_dict()}
        flat = {name: tensor for prefix, group in kept.items() for name, tensor in prefixed(group, prefix).items()}
        return {"updates": torch.tensor(self.updates)} | flat

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a kept model."""
        self.updates, self.memory = int(state["updates"]), named(state, "memory.")
        weights, base = named(state, "weights."), named(state, "base.")
        self.handout = Handout(self.method.downlink, self.seed, weights, base, self.round)
        self.average = named(state, AVERAGE) or self.handout.given
        self.lengths.load_state_dict(named(state, LENGTHS))
        self._asked = self._draw()

    def _decoded(self, silo: str, message: Message) -> Mapping[str, Tensor]:
        return self.method.up.decode(message.tensors, zeros(self.method.layout_of(self._asked[silo])))

    def _moved(self, mean: Tensors) -> Tensors:
        """The server's weights, moved as silos moved away from what they held."""
        up, down, optimizer = self.method.up, self.method.down, self.method.server_optimizer
        if not (optimizer or up.relative or down.relative):
            return mean  # to the bit
        given = self.handout.given
        moved = mean if up.relative else {name: value - given[name] for name, value in mean.items()}
        if optimizer and mean:
            moved, self.memory = optimizer.step(moved, self.memory)
        return {name: self.weights[name] + value for name, value in moved.items()}

    def _answer(self, silo: str, message: Message) -> Message:
        done, holds = self.round >= self.method.rounds, message.facts.get("holds", -1)
        form = self.handout.form(holds)
        facts: Facts = {"round": self.round, "done": done}
        if self.method.share == "usplit":
            facts["send"] = self._asked.get(silo, "")
        if self.handout.link.tracks:
            facts["form"] = form
        wanted = silo in self._asked or (done and (self.method.personal or self.method.kept))
        return Message(message.op, self.handout.wire(form) if wanted else {}, facts)

    def _draw(self) -> dict[str, str]:
        """Those who take part in the open round, and what each is to send; nobody when all are done."""
        if self.round >= self.method.rounds:
            return {}
        silos = [silo for silo in self.silos if silo != self.lengths.left_out]
        count = min(self.method.participants or len(silos), len(silos))
        rng = numpy_rng(self.seed, "participants", self.round)
        return asked(self.method.share, rng.choice(silos, count, replace=False).tolist(), rng)
