"""Federated averaging of a diffusion model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from manyhands.codec import AnyCodec, Float32
from manyhands.errors import Reason, RecipeError, Refused
from manyhands.message import Message
from manyhands.methods.denoising import NOTHING, Denoising, Trained, sick, update_facts
from manyhands.methods.method import Conversation, Server
from manyhands.models.generator import Generator
from manyhands.plan import RESTING, ROUND_FACTS, Carries, Operation, Plan
from manyhands.seed import numpy_rng
from manyhands.silo import Silo
from manyhands.spec import Int
from manyhands.tensors import Layout, Tensors, WeightedMean, layout, running_average, snapshot
from manyhands.training import load_optimiser_state, optimiser_state


class FedAvg(Denoising):
    """Each round, silos train the shared network on their own images, and the server averages what they send.

    The mean is weighted by the silos' numbers of images. ``participants`` silos are drawn each round, without
    replacement (None: all). ``keep_optimiser`` keeps each silo's optimiser over rounds, at the silo. Silos always go
    on from the plain mean, never from its average over rounds.

    References:
        Communication-Efficient Learning of Deep Networks from Decentralized Data, McMahan et al., 2017,
            arXiv 1602.05629
        Federated Learning with Diffusion Models for Privacy-Sensitive Vision Tasks, Tun et al., 2023, arXiv 2311.16538
    """

    kind: Literal["fedavg"] = "fedavg"
    participants: Int | None = Field(default=None, ge=1)
    keep_optimiser: bool = False
    up: AnyCodec = Float32()
    down: AnyCodec = Float32()

    @field_validator("up", "down", mode="before")
    @classmethod
    def _by_name(cls, told: Any) -> Any:
        return {"kind": told} if isinstance(told, str) else told

    def silo(self, silo: Silo) -> Conversation:
        """Join, then train whenever weights come, until the server says that it is done."""
        hello = Message("join", facts={"images": len(silo.images)})
        answer, again = (yield hello), None
        while not answer.facts["done"]:
            try:  # no name is given to an update: a silo that waits must not hold on to it
                answer, again = (yield again or self._say(silo, answer)), None
            except Refused as refusal:
                stale = refusal.reason is Reason.STALE_ROUND
                if again is not None and not stale:
                    raise
                again = hello if stale else _withheld(silo, answer, str(refusal))

    def server(self, seed: int, silos: Sequence[str]) -> FedAvgServer:
        """The server, with a freshly initialised network."""
        if (self.participants or 1) > len(silos):
            raise RecipeError(f"participants is {self.participants}, there are {len(silos)} silos")
        return FedAvgServer(self, seed, silos)

    def plan(self) -> Plan:
        """Weights down and up, once a round; no image, no label."""
        gives = Carries(self.down.wire(self._layout), {"round": int, "done": bool}, optional=True)
        takes = Carries(self.up.wire(self._layout), ROUND_FACTS, optional=True)
        whose = f"{self.participants} silos a round" if self.participants else "every silo, every round"
        return Plan(
            {
                "join": Operation(
                    "says how many images it has, gets the model", "once", Carries(facts={"images": int}), gives
                ),
                "update": Operation(
                    f"sends its model after local training, gets the mean ({whose})",
                    f"{self.rounds} times",
                    takes,
                    gives,
                    group=True,
                    closes_round=True,
                ),
            },
            never=("images", "labels", "file names"),
        )

    @cached_property
    def _layout(self) -> Layout:
        with torch.device("meta"):
            return layout(self.model.build(seed=0).state_dict())

    def _say(self, silo: Silo, answer: Message) -> Message:
        return self._update(silo, answer) if answer.tensors else _withheld(silo, answer, RESTING)

    def _update(self, silo: Silo, answer: Message) -> Message:
        """One round at the silo: load what came, train, send what came of it."""
        network = silo.bench.network(self.model)
        network.load_state_dict(self.down.decode(answer.tensors))
        number = answer.facts["round"]
        optimiser = self.training.optimiser_of(network, self.progress(number))
        if self.keep_optimiser:
            load_optimiser_state(optimiser, silo.memory)
        trained = self.train_round(network, optimiser, silo, number)
        weights = snapshot(network.state_dict())
        if why := sick(trained, weights):
            return _withheld(silo, answer, why, trained)
        if self.keep_optimiser:
            silo.memory |= optimiser_state(optimiser)
        return Message("update", self.up.encode(weights), update_facts(silo, answer, trained))


class FedAvgServer(Server):
    """Holds the model, and while a round is open the sum of the updates that came."""

    def __init__(self, method: FedAvg, seed: int, silos: Sequence[str]) -> None:
        self.method, self.seed, self.silos = method, seed, sorted(silos)
        self.weights: Tensors = snapshot(method.model.build(seed).state_dict())
        self.average = self.weights
        self.updates = 0
        self.mean = WeightedMean()
        self._chosen = self._draw()
        self._sent: tuple[Tensors, Tensors] = {}, {}

    def on(self, silo: str, message: Message) -> Message:
        """Join: the model of the open round, for those who take part in it."""
        return self._hand_out(message.op, [silo])[silo]

    def admit(self, silo: str, message: Message) -> None:
        """An update from a silo that does not take part in the round is refused."""
        if message.tensors and silo not in self._chosen:
            raise Refused(Reason.NOT_ASKED, f"{silo} does not take part in round {self.round}")

    def fold(self, silo: str, message: Message) -> Message:
        """Add an update to the sum and keep only what it says."""
        if message.tensors:
            self.mean.add(self.method.up.decode(message.tensors), message.facts["images"])
        return Message(message.op, {}, message.facts)

    def on_group(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Close the round, and give the mean to those who take part in the next one."""
        if self.mean.weight:
            self.weights = self.mean.value()
            self.average = running_average(self.average, self.weights, self.method.ema, self.updates)
            self.updates += 1
        self.mean = WeightedMean()
        self.round += 1
        self._chosen = self._draw()
        return self._hand_out(op, messages)

    def generator(self) -> Generator:
        """The network that all share."""
        return self.method.generator_of(self.average)

    def state_dict(self) -> Tensors:
        """The model, its average over rounds, and how many means went into that."""
        kept = {"updates": torch.tensor(self.updates)} | {
            f"weights.{name}": tensor for name, tensor in self.weights.items()
        }
        if self.method.ema:
            kept |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        return kept

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a kept model."""
        self.updates = int(state["updates"])
        self.weights = {name.removeprefix("weights."): t for name, t in state.items() if name.startswith("weights.")}
        average = {name.removeprefix("average."): t for name, t in state.items() if name.startswith("average.")}
        self.average = average or self.weights
        self._chosen = self._draw()

    def _hand_out(self, op: str, silos: Iterable[str]) -> dict[str, Message]:
        facts = {"round": self.round, "done": self.round >= self.method.rounds}
        return {silo: Message(op, self._wire() if silo in self._chosen else {}, facts) for silo in silos}

    def _wire(self) -> Tensors:
        """The model of the open round as it travels: one copy, whoever asks for it."""
        if self._sent[0] is not self.weights:
            self._sent = self.weights, self.method.down.encode(self.weights)
        return self._sent[1]

    def _draw(self) -> set[str]:
        """Those who take part in the open round; nobody when all are done."""
        if self.round >= self.method.rounds:
            return set()
        count = min(self.method.participants or len(self.silos), len(self.silos))
        rng = numpy_rng(self.seed, "participants", self.round)
        return set(rng.choice(self.silos, count, replace=False).tolist())


def _withheld(silo: Silo, answer: Message, why: str, trained: Trained = NOTHING) -> Message:
    return Message("update", {}, update_facts(silo, answer, trained._replace(loss=None), why))
