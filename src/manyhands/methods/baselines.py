"""What a method is held against: silos that do not exchange anything, and one that has all the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field

from manyhands.errors import RecipeError
from manyhands.message import Message
from manyhands.methods.denoising import Denoising, sick, update_facts
from manyhands.methods.fedavg import FedAvg
from manyhands.methods.method import Conversation, Server
from manyhands.models.autoencoder import TrainedAutoencoder
from manyhands.models.generator import Generator
from manyhands.plan import ROUND_FACTS, Carries, Operation, Plan
from manyhands.silo import Silo
from manyhands.spec import Int
from manyhands.tensors import Tensors, named, prefixed, running_average, snapshot
from manyhands.training import load_optimiser_state, optimiser_state


class Local(Denoising):
    """No exchange: every silo trains a network of its own, by the same loop and with the same budget."""

    kind: Literal["local"] = "local"
    keep_optimiser: bool = True

    def silo(self, silo: Silo) -> Conversation:
        """Train from the common start, and tell after each round how it went."""
        yield from self.prepared(silo)
        answer = yield Message("join", facts={"images": len(silo.images)})
        while not answer.facts["done"]:
            answer = yield self._round(silo, answer)

    def server(self, seed: int, silos: Sequence[str]) -> Server:
        """A server that only counts rounds, and tells everyone the seed of the common start."""
        return self.prepared_server(LocalServer(self.rounds, seed))

    def plan(self) -> Plan:
        """No tensor either way."""
        gives = Carries(facts={"round": int, "done": bool, "seed": int})
        return Plan(
            self.preparations()
            | {
                "join": Operation("says how many images it has", "once", Carries(facts={"images": int}), gives),
                "progress": Operation(
                    "tells its loss", f"{self.rounds} times", Carries(facts=ROUND_FACTS), gives, True, True
                ),
            },
            never=(*self.never, "models"),
        )

    def own_generator(self, silo: Silo) -> Generator | TrainedAutoencoder | None:
        """What the silo has trained for itself."""
        return self.own_generator_of(silo, named(silo.memory, "average."))

    def _round(self, silo: Silo, answer: Message) -> Message:
        if self.diffusion.upto == 0:
            return Message("progress", {}, update_facts(silo, answer))
        network, number = silo.bench.network(self.model), answer.facts["round"]
        start = named(silo.memory, "weights.") or snapshot(self.model.build(answer.facts["seed"]).state_dict())
        network.load_state_dict(start)
        optimiser = self.training.optimiser_of(network, self.progress(number))
        if self.keep_optimiser:
            load_optimiser_state(optimiser, silo.memory)
        trained = self.train_round(network, optimiser, silo, number)
        weights = snapshot(network.state_dict())
        if why := sick(trained, weights):
            return Message("progress", {}, update_facts(silo, answer, trained._replace(loss=None), why))
        updates = int(silo.memory.get("updates", torch.tensor(0)))
        average = running_average(named(silo.memory, "average."), weights, self.ema, updates)
        silo.memory |= {
            "updates": torch.tensor(updates + 1),
            **prefixed(weights, "weights."),
            **prefixed(average, "average."),
            **(optimiser_state(optimiser) if self.keep_optimiser else {}),
        }
        return Message("progress", {}, update_facts(silo, answer, trained))


class LocalServer(Server):
    """Counts rounds."""

    def __init__(self, rounds: int, seed: int) -> None:
        self.rounds, self.seed = rounds, seed

    def on(self, silo: str, message: Message) -> Message:
        """Join."""
        return self._answer(message.op)

    def on_group(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
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


class Central(Denoising):
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

    def server(self, seed: int, silos: Sequence[str]) -> Server:
        """As in ``FedAvg``."""
        if len(silos) != 1:
            raise RecipeError(f"method central takes one silo with all the data, not {len(silos)}")
        return self._inner.server(seed, silos)

    def plan(self) -> Plan:
        """As in ``FedAvg``."""
        return self._inner.plan()

    @property
    def _inner(self) -> FedAvg:
        return FedAvg(
            model=self.model,
            training=self.training.joined(self.silos) if self.joined else self.training.times(self.silos),
            diffusion=self.diffusion,
            rounds=self.rounds,
            ema=self.ema,
            keep_optimiser=self.keep_optimiser,
        )
