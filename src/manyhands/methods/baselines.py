"""What a method is held against: silos that do not exchange anything, and one that has all the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from manyhands.errors import RecipeError
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.generators.gan import GanGenerator
from manyhands.messages import outgoing
from manyhands.messages.message import Message
from manyhands.messages.operation import IMAGES, SEED, Operation, Payload, next_round_facts, round_facts
from manyhands.messages.plan import Plan
from manyhands.methods.base import Conversation, Server
from manyhands.methods.distil import Distil, Teacher
from manyhands.methods.fedavg.method import FedAvg
from manyhands.methods.local_training import LocalTrainingMethod, update_facts, why_unusable
from manyhands.models.autoencoder import TrainedAutoencoder
from manyhands.models.unet import UNet
from manyhands.silos.silo import Silo
from manyhands.silos.training import load_optimiser_state, optimiser_state
from manyhands.spec import Int
from manyhands.tensors import Tensors, add_prefix, running_average, snapshot, strip_prefix

BEFORE = "before the run"


class Local(LocalTrainingMethod):
    """No exchange: every silo trains a network of its own, by the same loop and with the same budget.

    ``distil`` spends its last rounds on teaching the network to draw in a few steps.
    """

    kind: Literal["local"] = "local"
    keep_optimiser: bool = True
    distil: Distil | None = None

    @model_validator(mode="after")
    def _something_to_teach(self) -> Self:
        if self.distil and self.distil.rounds >= self.rounds:
            raise ValueError(f"distil.rounds is {self.distil.rounds}, and there are {self.rounds} rounds in all")
        if self.distil and not isinstance(self.model, UNet):
            raise ValueError(f"distil is for a U-Net, not for kind {self.model.kind!r}")
        return self

    def silo(self, silo: Silo) -> Conversation:
        """Train from the common start, and tell after each round how it went."""
        yield from self.prepared(silo)
        answer = yield Message("join", facts={"images": len(silo.images)})
        while not answer.facts["done"]:
            answer = yield self._round(silo, answer)

    def server(self, seed: int, silos: Mapping[str, int]) -> Server:
        """A server that only counts rounds, and tells everyone the seed of the common start."""
        return self.prepared_server(LocalServer(self.rounds, seed))

    def plan(self) -> Plan:
        """No tensor either way."""
        gives = Payload(facts={**next_round_facts(self.rounds), "seed": SEED})
        return Plan(
            self.preparations()
            | {
                "join": Operation("says how many images it has", "once", Payload(facts={"images": IMAGES}), gives),
                "progress": Operation(
                    "tells its loss", f"{self.rounds} times", Payload(facts=round_facts(self.rounds)), gives, True, True
                ),
            },
        )

    def silo_generator(self, silo: Silo) -> DiffusionGenerator | GanGenerator | TrainedAutoencoder | None:
        """What the silo has trained for itself."""
        return self.silo_generator_of(silo, strip_prefix(silo.memory, "average."))

    def _round(self, silo: Silo, answer: Message) -> Message:
        if self.diffusion.upto == 0:
            return Message("progress", {}, update_facts(silo, answer))
        network, number = silo.device_context.network(self.model), answer.facts["round"]
        if number == self.lessons_from:
            self._becomes_a_teacher(silo)
        start = strip_prefix(silo.memory, "weights.") or snapshot(self.model.build(answer.facts["seed"]).state_dict())
        network.load_state_dict(start)
        optimiser = self.training.optimiser_of(network, self.progress(number))
        if self.keep_optimiser:
            load_optimiser_state(optimiser, silo.memory)
        trained = self.train_round(network, optimiser, silo, number, teacher=self._teacher(silo))
        weights = snapshot(network.state_dict())
        if why := why_unusable(trained, weights):
            return Message("progress", {}, update_facts(silo, answer, trained._replace(loss=None), why))
        updates = int(silo.memory.get("updates", torch.tensor(0)))
        average = running_average(strip_prefix(silo.memory, "average."), weights, self.ema, updates)
        silo.memory |= {
            "updates": torch.tensor(updates + 1),
            **add_prefix(weights, "weights."),
            **add_prefix(average, "average."),
            **(optimiser_state(optimiser) if self.keep_optimiser else {}),
        }
        return Message("progress", {}, update_facts(silo, answer, trained))

    @property
    def lessons_from(self) -> int | None:
        """The round in which the network begins to be taught, if it is."""
        return self.rounds - self.distil.rounds if self.distil else None

    def progress(self, number: int) -> float:
        """As ever, but learning and being taught are two runs, each with a falling rate."""
        first = self.lessons_from
        if first is None:
            return super().progress(number)
        begins, ends = (0, first) if number < first else (first, self.rounds)
        return (number - begins) / max(ends - begins - 1, 1)

    def _becomes_a_teacher(self, silo: Silo) -> None:
        """What was learnt is kept to teach, and what is taught starts from it."""
        learnt = strip_prefix(silo.memory, "average.")
        silo.memory = add_prefix(learnt, "teacher.") | add_prefix(learnt, "weights.") | _other_things(silo.memory)

    def _teacher(self, silo: Silo) -> Teacher | None:
        weights = strip_prefix(silo.memory, "teacher.")
        if not (self.distil and weights and isinstance(self.model, UNet)):
            return None
        return Teacher(self.distil, self.diffusion, self.model, weights)


def _other_things(memory: Tensors) -> Tensors:
    """What a silo remembers beside what local training made."""
    made = ("weights.", "average.", "teacher.", "optimiser.", "updates")
    return {name: tensor for name, tensor in memory.items() if not name.startswith(made)}


class LocalServer(Server):
    """Counts rounds."""

    def __init__(self, rounds: int, seed: int) -> None:
        self.rounds, self.seed = rounds, seed

    def handle(self, silo: str, message: Message) -> Message:
        """Join."""
        return self._answer(message.op)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Close the round."""
        self.round += 1
        return {silo: self._answer(op) for silo in messages}

    def state_dict(self) -> Tensors:
        """Nothing but the round's number, which is kept for every server."""
        return {}

    def load_state_dict(self, state: Tensors) -> None:
        """Nothing to load."""

    def _answer(self, op: str) -> Message:
        return Message(op, {}, {"round": self.round, "done": self.round >= self.rounds, "seed": self.seed})


class Central(LocalTrainingMethod):
    """All images in one place: what collaboration is meant to come close to. The pooled data is the only silo.

    It wraps ``FedAvg`` over one silo, and sees as many images as all silos together:
    ``silos`` times the steps of a silo (epochs of the pooled data are that already), or where ``joined`` as many steps
    of a batch as large as those of all silos together, which is what an average of their gradients would do.
    """

    pools = True

    kind: Literal["central"] = "central"
    silos: Int = Field(default=1, ge=1)
    joined: bool = False
    keep_optimiser: bool = True

    def silo(self, silo: Silo) -> Conversation:
        """As in ``FedAvg``."""
        return self._inner.silo(silo)

    def server(self, seed: int, silos: Mapping[str, int]) -> Server:
        """As in ``FedAvg``."""
        if len(silos) != 1:
            raise RecipeError(f"method central takes one silo with all the data, not {len(silos)}")
        return self._inner.server(seed, silos)

    def plan(self) -> Plan:
        """As in ``FedAvg``, after all images have come to one place."""
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
