"""The server's half where it has the generator: it generates images, and is trained by the silos' gradients."""

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
from manyhands.methods.base import AVERAGE, WEIGHTS
from manyhands.methods.gans.discriminator_silos import FOR_DISCRIMINATOR, FOR_GENERATOR, DiscriminatorSilosMethod
from manyhands.methods.server import Server
from manyhands.models.gan import GanModule, run_blocks
from manyhands.seed import torch_rng
from manyhands.silos.flops import Meter
from manyhands.silos.local_training import load_optimiser_state, optimiser_state
from manyhands.tensors import Tensors, add_prefix, running_average, snapshot, strip_prefix


class FakeBatch(NamedTuple):
    """A batch of generated images.

    Args:
        images: The images, of shape (B, C, H, W), still attached to the generator.
        labels: Their labels, of shape (B,), or None for a model without classes.
    """

    images: Tensor
    labels: Tensor | None


class FeedbackDue(NamedTuple):
    """For what a silo owes gradients.

    Args:
        batch: The number of the batch of generated images.
        size: How many images of it the silo was sent.
    """

    batch: int
    size: int


class GeneratorServer(Server, ABC):
    """Has the generator, and the discriminators that their silos have not fetched yet.

    Args:
        method: The fields of the run.
        seed: The seed of the run.
        silos: The names of all silos.
    """

    def __init__(self, method: DiscriminatorSilosMethod, seed: int, silos: Collection[str]) -> None:
        self.method, self.seed, self.silos = method, seed, sorted(silos)
        self.pending: dict[str, Tensors] = {}
        self.average: Tensors = {}
        self.meter = Meter({})
        self._fakes: list[FakeBatch] = []
        self._feedback_due: dict[str, FeedbackDue] = {}
        self._rng: torch.Generator | None = None

    @abstractmethod
    def closed(self, sent: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """Return the discriminators that silos get for those that they sent."""

    def handle(self, silo: str, message: Message) -> Message:
        """Send a silo that joins the discriminator that waits for it, or the common start if it has none."""
        if not (self.pending.get(silo) or message.facts["holds"]):
            start = self.method.model.build(self.seed).state_dict()
            spec = self.method.discriminator_spec
            self.pending[silo] = {name: tensor for name, tensor in snapshot(start).items() if name in spec}
        return Message("join", self.pending.get(silo, {}), self._facts())

    def validate(self, silo: str, message: Message) -> None:
        """Refuse gradients of images that were not sent or are answered, and discriminators that are not due."""
        if message.op == "discriminator" and message.tensors:
            if not self.method.sends(self.round):
                raise Refused(
                    Reason.UNEXPECTED_TENSOR, f"{silo} sends a discriminator, but none is due after this round"
                )
            self.method.check_weights(message.tensors)
        if message.op == "images" and not 0 < message.facts["count"] <= self.method.training.batch:
            raise Refused(
                Reason.WRONG_FACTS,
                f"{silo} asks for {message.facts['count']} images, expected 1 to {self.method.training.batch}",
            )
        if message.op == "images" and self._feedback_due:
            raise Refused(
                Reason.OUT_OF_SEQUENCE, f"{silo} asks for images before others have sent gradients of the last ones"
            )
        if message.op == "feedback":
            self.method.check_weights(message.tensors)
            due, count = self._feedback_due.get(silo), len(message.tensors["x"])
            if due is None:
                raise Refused(
                    Reason.OUT_OF_SEQUENCE, f"{silo} sends gradients, but has no images left to send them for"
                )
            if count != due.size:
                raise Refused(Reason.WRONG_SHAPE, f"{silo} sends gradients of {count} images, expected {due.size}")

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Generate images, take a step by the silos' gradients, or close a round."""
        if op == "images":
            return self._generate({silo: messages[silo].facts["count"] for silo in sorted(messages)})
        if op == "feedback":
            self._learn({silo: messages[silo].tensors["x"] for silo in sorted(messages)})
            return {silo: Message(op) for silo in messages}
        self.pending = {silo: held for silo, held in self.pending.items() if silo not in messages}
        sent = {silo: dict(messages[silo].tensors) for silo in sorted(messages) if messages[silo].tensors}
        self.pending |= self.closed(sent)
        latest = snapshot(self.network.state_dict())
        self.average = running_average(self.average, latest, self.method.ema, self.round)
        self.round, self.flops, self._rng = self.round + 1, self.meter.flops, None
        self._fakes, self._feedback_due = [], {}
        return {silo: Message(op, self.pending.get(silo, {}), self._facts()) for silo in messages}

    def generator(self) -> GanGenerator:
        """Return the generator, averaged over rounds."""
        weights = self.average or generator_weights(snapshot(self.network.state_dict()))
        return GanGenerator(self.method.model, weights, ema=self.method.ema)

    def state_dict(self) -> Tensors:
        """Return the generator, its optimiser and average, and the discriminators that wait for their silos."""
        flat = add_prefix(snapshot(self.network.state_dict()), WEIGHTS) | add_prefix(self.average, AVERAGE)
        for silo, held in self.pending.items():
            flat |= add_prefix(held, f"pending.{silo}/")
        return flat | optimiser_state(self.optimiser)

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a state of ``state_dict``."""
        self.network.load_state_dict(strip_prefix(state, WEIGHTS))
        self.average = strip_prefix(state, AVERAGE)
        load_optimiser_state(self.optimiser, state)
        pending = {silo: strip_prefix(state, f"pending.{silo}/") for silo in self.silos}
        self.pending = {silo: held for silo, held in pending.items() if held}

    @cached_property
    def network(self) -> GanModule:
        """The generator, on the device."""
        network = self.method.model.build(self.seed).keep(lambda name, _: name == "generator")
        return network.to(self.device).train()

    @cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        """The optimiser of the generator."""
        return self.method.training.optimiser_of(self.network, 0.0)

    def _generate(self, counts: Mapping[str, int]) -> Mapping[str, Message]:
        """Generate the batches, and send each silo one to train each of the networks on, or one for both."""
        most, batches = max(counts.values()), min(self.method.made_at_once, len(counts))
        self._fakes = [self._batch(most) for _ in range(batches)]
        self._feedback_due = {silo: FeedbackDue(place % batches, counts[silo]) for place, silo in enumerate(counts)}
        answers = {}
        for silo, (batch, count) in self._feedback_due.items():
            tensors = _tensors(self._fakes[batch], count, FOR_GENERATOR if batches > 1 else FOR_DISCRIMINATOR)
            if batches > 1:
                tensors |= _tensors(self._fakes[(batch + 1) % batches], count, FOR_DISCRIMINATOR)
            answers[silo] = Message("images", tensors)
        return answers

    def _batch(self, count: int) -> FakeBatch:
        model = self.method.model
        self._rng = self._rng or torch_rng(self.seed, "made", self.round, device=self.device)
        z = torch.randn(count, model.latent, generator=self._rng, device=self.device)
        labels = None
        if model.classes:
            labels = torch.randint(model.classes, (count,), generator=self._rng, device=self.device)
        with self.meter.work(model, "make", count):
            return FakeBatch(run_blocks(self.network.generator, z, labels), labels)

    def _learn(self, gradients: Mapping[str, Tensor]) -> None:
        """Take one step by the mean of the silos' gradients."""
        training = self.method.training
        training.set_rate(self.optimiser, self.method.progress(self.round))
        totals: dict[int, Tensor] = {}
        for silo, gradient in gradients.items():
            batch, count = self._feedback_due.pop(silo)
            total = totals.setdefault(batch, torch.zeros_like(self._fakes[batch].images))
            total[:count] += gradient.to(self.device) / len(gradients)
        self.optimiser.zero_grad(set_to_none=True)
        for batch, total in sorted(totals.items()):
            with self.meter.work(self.method.model, "learn", len(total)):
                self._fakes[batch].images.backward(total)
        self.optimiser.step()
        self._fakes, self._feedback_due = [], {}

    def _facts(self) -> dict[str, object]:
        return {"round": self.round, "done": self.round >= self.method.rounds}


def _tensors(fakes: FakeBatch, count: int, purpose: str) -> Tensors:
    labels = {} if fakes.labels is None else {f"{purpose}labels": fakes.labels[:count].cpu()}
    return {f"{purpose}images": fakes.images.detach()[:count].cpu()} | labels
