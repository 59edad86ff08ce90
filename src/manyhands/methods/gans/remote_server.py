"""The server's half where the generator is its own: it makes images, and learns from what silos answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from manyhands.errors import Reason, Refused
from manyhands.generators.gan import GanGenerator, generator_weights
from manyhands.messages.message import Message
from manyhands.methods.base import Server
from manyhands.methods.gans.remote import JUDGE, LEARN, RemoteGenerator
from manyhands.models.gan import GanModule, run_blocks
from manyhands.seed import torch_rng
from manyhands.silos.flops import Meter
from manyhands.silos.training import load_optimiser_state, optimiser_state
from manyhands.tensors import Tensors, add_prefix, running_average, snapshot, strip_prefix


class Made(NamedTuple):
    """A batch of made images, still attached to the generator, and their labels."""

    images: Tensor
    labels: Tensor | None


class Turn(NamedTuple):
    """What a silo got: the number of the batch that it judges, and how many images of it."""

    batch: int
    size: int


class RemoteServer(Server, ABC):
    """Has the generator, and of discriminators those that their silos have not taken yet."""

    def __init__(self, method: RemoteGenerator, seed: int, silos: Collection[str]) -> None:
        self.method, self.seed, self.silos = method, seed, sorted(silos)
        self.pending: dict[str, Tensors] = {}
        self.average: Tensors = {}
        self.meter = Meter({})
        self._made: list[Made] = []
        self._turns: dict[str, Turn] = {}
        self._rng: torch.Generator | None = None

    @abstractmethod
    def closed(self, sent: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """The discriminators that silos get for those that they sent."""

    def handle(self, silo: str, message: Message) -> Message:
        """Join: a silo gets what it has not taken yet, and the common start if it has nothing."""
        if not (self.pending.get(silo) or message.facts["holds"]):
            start = self.method.model.build(self.seed).state_dict()
            self.pending[silo] = {name: w for name, w in snapshot(start).items() if name in self.method.critic_layout}
        return Message("join", self.pending.get(silo, {}), self._facts())

    def validate(self, silo: str, message: Message) -> None:
        """A silo judges what it was sent, once; a discriminator comes when it is to."""
        if message.op == "discriminator" and message.tensors:
            if not self.method.sends(self.round):
                raise Refused(Reason.UNEXPECTED_TENSOR, f"{silo} sends a discriminator, this round asks for none")
            self.method.check_weights(message.tensors)
        if message.op == "images" and not 0 < message.facts["count"] <= self.method.training.batch:
            raise Refused(Reason.WRONG_FACTS, f"asks for {message.facts['count']} images at once")
        if message.op == "images" and self._turns:
            raise Refused(Reason.OUT_OF_SEQUENCE, f"{silo} asks for images while others judge")
        if message.op == "feedback":
            self.method.check_weights(message.tensors)
            turn, count = self._turns.get(silo), len(message.tensors["x"])
            if turn is None:
                raise Refused(Reason.OUT_OF_SEQUENCE, f"{silo} judges what it did not get")
            if count != turn.size:
                raise Refused(Reason.WRONG_SHAPE, f"judges {count} images, it got {turn.size}")

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Make images, learn from what was said of them, or close a round."""
        if op == "images":
            return self._make({silo: messages[silo].facts["count"] for silo in sorted(messages)})
        if op == "feedback":
            self._learn({silo: messages[silo].tensors["x"] for silo in sorted(messages)})
            return {silo: Message(op) for silo in messages}
        self.pending = {silo: held for silo, held in self.pending.items() if silo not in messages}
        sent = {silo: dict(messages[silo].tensors) for silo in sorted(messages) if messages[silo].tensors}
        self.pending |= self.closed(sent)
        latest = snapshot(self.network.state_dict())
        self.average = running_average(self.average, latest, self.method.ema, self.round)
        self.round, self.flops, self._rng = self.round + 1, self.meter.flops, None
        self._made, self._turns = [], {}
        return {silo: Message(op, self.pending.get(silo, {}), self._facts()) for silo in messages}

    def generator(self) -> GanGenerator:
        """The one that all share."""
        weights = self.average or generator_weights(snapshot(self.network.state_dict()))
        return GanGenerator(self.method.model, weights, ema=self.method.ema)

    def state_dict(self) -> Tensors:
        """The generator with its optimiser and average, and the discriminators on their way."""
        flat = add_prefix(snapshot(self.network.state_dict()), "weights.") | add_prefix(self.average, "average.")
        for silo, held in self.pending.items():
            flat |= add_prefix(held, f"pending.{silo}/")
        return flat | optimiser_state(self.optimiser)

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a kept generator."""
        self.network.load_state_dict(strip_prefix(state, "weights."))
        self.average = strip_prefix(state, "average.")
        load_optimiser_state(self.optimiser, state)
        pending = {silo: strip_prefix(state, f"pending.{silo}/") for silo in self.silos}
        self.pending = {silo: held for silo, held in pending.items() if held}

    @cached_property
    def network(self) -> GanModule:
        """The generator, on the device."""
        made = self.method.model.build(self.seed).keep(lambda network, _: network == "generator")
        return made.to(self.device).train()

    @cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        """That of the generator."""
        return self.method.training.optimiser_of(self.network, 0.0)

    def _make(self, counts: Mapping[str, int]) -> Mapping[str, Message]:
        """As many batches as there are to be, and for each silo the one to learn from and the one to judge."""
        most, batches = max(counts.values()), min(self.method.made_at_once, len(counts))
        self._made = [self._batch(most) for _ in range(batches)]
        self._turns = {silo: Turn(place % batches, counts[silo]) for place, silo in enumerate(counts)}
        answers = {}
        for silo, (batch, count) in self._turns.items():
            told = _told(self._made[batch], count, JUDGE if batches > 1 else LEARN)
            if batches > 1:
                told |= _told(self._made[(batch + 1) % batches], count, LEARN)
            answers[silo] = Message("images", told)
        return answers

    def _batch(self, count: int) -> Made:
        model = self.method.model
        self._rng = self._rng or torch_rng(self.seed, "made", self.round, device=self.device)
        z = torch.randn(count, model.latent, generator=self._rng, device=self.device)
        labels = None
        if model.classes:
            labels = torch.randint(model.classes, (count,), generator=self._rng, device=self.device)
        with self.meter.work(model, "make", count):
            return Made(run_blocks(self.network.generator, z, labels), labels)

    def _learn(self, said: Mapping[str, Tensor]) -> None:
        """One step by the mean of what silos said."""
        training = self.method.training
        for group in self.optimiser.param_groups:
            group["lr"] = training.rate(self.method.progress(self.round))
        totals: dict[int, Tensor] = {}
        for silo, gradient in said.items():
            batch, count = self._turns.pop(silo)
            total = totals.setdefault(batch, torch.zeros_like(self._made[batch].images))
            total[:count] += gradient.to(self.device) / len(said)
        self.optimiser.zero_grad(set_to_none=True)
        for batch, total in sorted(totals.items()):
            with self.meter.work(self.method.model, "learn", len(total)):
                self._made[batch].images.backward(total)
        self.optimiser.step()
        self._made, self._turns = [], {}

    def _facts(self) -> dict[str, object]:
        return {"round": self.round, "done": self.round >= self.method.rounds}


def _told(made: Made, count: int, what: str) -> Tensors:
    labels = {} if made.labels is None else {f"{what}labels": made.labels[:count].cpu()}
    return {f"{what}images": made.images.detach()[:count].cpu()} | labels
