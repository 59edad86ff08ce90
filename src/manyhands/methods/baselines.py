"""Baselines: silos that train alone, and one silo that has all the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from manyhands.errors import RecipeError
from manyhands.generators.load import TrainedModel
from manyhands.messages import outgoing
from manyhands.messages.message import Message
from manyhands.messages.operation import IMAGES, SEED, Operation, Payload, next_round_facts, round_facts
from manyhands.messages.plan import Plan
from manyhands.methods.base import AVERAGE, WEIGHTS, Conversation
from manyhands.methods.distil import Distil, Teacher
from manyhands.methods.fedavg.method import FedAvg
from manyhands.methods.round_report import update_facts, why_unusable
from manyhands.methods.server import Server
from manyhands.methods.whole_network import WholeNetworkMethod
from manyhands.silos.local_training import load_optimiser_state, optimiser_state
from manyhands.silos.silo import Silo
from manyhands.spec import Int
from manyhands.tensors import Tensors, add_prefix, running_average, snapshot, strip_prefix

BEFORE = "before the run"


class Local(WholeNetworkMethod):
    """No exchange: every silo trains a network of its own, with the same loop and the same budget."""

    kind: Literal["local"] = Field(default="local", description="The name of this method in a recipe.")
    keep_optimiser: bool = Field(
        default=True, description="Whether a silo keeps its optimiser's state from round to round."
    )
    distil: Distil | None = Field(
        default=None,
        description="Distils the network in its last rounds, so that it draws in a few steps; None does not.",
    )

    @model_validator(mode="after")
    def _rounds_before_distillation(self) -> Self:
        if self.distil and self.distil.rounds >= self.rounds:
            raise ValueError(f"distil.rounds is {self.distil.rounds}, but there are {self.rounds} rounds in all")
        if self.distil and not self.learner.can_distil:
            raise ValueError(f"distil is for a denoiser of images, such as a U-Net, not for {self.model.noun}")
        return self

    def silo(self, silo: Silo) -> Conversation:
        """Train from the common start, and report the loss after each round."""
        yield from self.learner.prepare(silo)
        answer = yield Message("join", facts={"images": len(silo.images)})
        while not answer.facts["done"]:
            answer = yield self._round(silo, answer)

    def server(self, seed: int, silos: Mapping[str, int]) -> Server:
        """Return a server that only counts rounds, and sends everyone the seed of the common start."""
        return self.learner.wrap_server(LocalServer(self.rounds, seed))

    def plan(self) -> Plan:
        """No tensor either way."""
        down = Payload(facts={**next_round_facts(self.rounds), "seed": SEED})
        return Plan(
            self.learner.operations()
            | {
                "join": Operation("says how many images it has", "once", Payload(facts={"images": IMAGES}), down),
                "progress": Operation(
                    "sends its loss",
                    f"{self.rounds} times",
                    Payload(facts=round_facts(self.rounds)),
                    down,
                    barrier=True,
                    closes_round=True,
                ),
            },
        )

    def silo_generator(self, silo: Silo) -> TrainedModel | None:
        """Return the network that the silo has trained."""
        return self.learner.silo_generator(silo, strip_prefix(silo.memory, AVERAGE))

    def _round(self, silo: Silo, answer: Message) -> Message:
        if self.diffusion.max_timestep == 0:
            return Message("progress", {}, update_facts(silo, answer))
        network, number = silo.device_context.network(self.model), answer.facts["round"]
        if number == self.distil_start:
            self._start_distillation(silo)
        start = strip_prefix(silo.memory, WEIGHTS) or snapshot(self.model.build(answer.facts["seed"]).state_dict())
        network.load_state_dict(start)
        optimiser = self.training.optimiser_of(network, self.progress(number))
        if self.keep_optimiser:
            load_optimiser_state(optimiser, silo.memory)
        trained = self.train_round(network, optimiser, silo, number, teacher=self._teacher(silo))
        weights = snapshot(network.state_dict())
        if why := why_unusable(trained, weights):
            return Message("progress", {}, update_facts(silo, answer, trained._replace(loss=None), why))
        updates = int(silo.memory.get("updates", torch.tensor(0)))
        latest = trained.average or weights
        average = running_average(strip_prefix(silo.memory, AVERAGE), latest, self.ema, updates)
        silo.memory.keep(
            {
                "updates": torch.tensor(updates + 1),
                **add_prefix(weights, WEIGHTS),
                **add_prefix(average, AVERAGE),
                **(optimiser_state(optimiser) if self.keep_optimiser else {}),
            }
        )
        return Message("progress", {}, update_facts(silo, answer, trained))

    @property
    def distil_start(self) -> int | None:
        """The round in which distillation starts; None without it."""
        return self.rounds - self.distil.rounds if self.distil else None

    def progress(self, number: int) -> float:
        """Return the share that is done; training and distillation count as two runs, each with a falling rate."""
        start = self.distil_start
        if start is None:
            return super().progress(number)
        first, end = (0, start) if number < start else (start, self.rounds)
        return (number - first) / max(end - first - 1, 1)

    def _start_distillation(self, silo: Silo) -> None:
        """Keep the trained weights as the teacher, and start the student from them."""
        weights = strip_prefix(silo.memory, AVERAGE)
        silo.memory.forget(WEIGHTS, AVERAGE, "teacher.", "optimiser.", "updates")
        silo.memory.keep(add_prefix(weights, "teacher.") | add_prefix(weights, WEIGHTS))

    def _teacher(self, silo: Silo) -> Teacher | None:
        weights = strip_prefix(silo.memory, "teacher.")
        return Teacher(self.distil, self.diffusion, self.model, weights) if self.distil and weights else None


class LocalServer(Server):
    """Counts rounds.

    Args:
        rounds: The rounds of the run.
        seed: The seed that all silos initialise their networks with.
    """

    def __init__(self, rounds: int, seed: int) -> None:
        self.rounds, self.seed = rounds, seed

    def handle(self, silo: str, message: Message) -> Message:
        """Send a silo that joins the seed and the round."""
        return self._answer(message.op)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Close the round."""
        self.round += 1
        return {silo: self._answer(op) for silo in messages}

    def state_dict(self) -> Tensors:
        """Return nothing: the round's number is kept for every server."""
        return {}

    def load_state_dict(self, state: Tensors) -> None:
        """Load nothing."""

    def _answer(self, op: str) -> Message:
        return Message(op, {}, {"round": self.round, "done": self.round >= self.rounds, "seed": self.seed})


class Central(WholeNetworkMethod):
    """All images in one place: the quality that collaboration tries to reach. The pooled data is the only silo.

    It is ``FedAvg`` over one silo, and is trained on as many images as all silos together.
    """

    pools_images = True

    kind: Literal["central"] = Field(default="central", description="The name of this method in a recipe.")
    silos: Int = Field(
        default=1,
        ge=1,
        description="How many silos it stands for: it takes this many times the steps of one silo. Epochs are those of "
        "the pooled images, and are not multiplied.",
    )
    joined: bool = Field(
        default=False,
        description="Whether to take the steps of one silo with a batch as large as those of all silos together, which "
        "equals averaging their gradients in each step.",
    )
    keep_optimiser: bool = Field(default=True, description="Whether the optimiser's state is kept from round to round.")

    def silo(self, silo: Silo) -> Conversation:
        """Train as in ``FedAvg``."""
        return self._inner.silo(silo)

    def server(self, seed: int, silos: Mapping[str, int]) -> Server:
        """Return the server of ``FedAvg``."""
        if len(silos) != 1:
            raise RecipeError(f"method central needs one silo with all the data, but there are {len(silos)}")
        return self._inner.server(seed, silos)

    def plan(self) -> Plan:
        """The plan of ``FedAvg``, after all images were sent to one place."""
        labels = (outgoing.Labels(often=BEFORE),) if self.model.classes else ()
        return replace(self._inner.plan(), before=(outgoing.Images(often=BEFORE), *labels))

    @property
    def _inner(self) -> FedAvg:
        return FedAvg(
            model=self.model,
            training=self.training.joined(self.silos) if self.joined else self.training.repeated(self.silos),
            diffusion=self.diffusion,
            rounds=self.rounds,
            ema=self.ema,
            keep_optimiser=self.keep_optimiser,
        )
