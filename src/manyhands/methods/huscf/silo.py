"""A silo's half of HuSCF-GAN: a plain GAN step with calls for the server's middle blocks in it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manyhands.data.loader import BatchLoader
from manyhands.errors import Reason, Refused
from manyhands.messages.codec import activations
from manyhands.messages.message import Message
from manyhands.methods.base import AVERAGE, Conversation
from manyhands.methods.huscf.activation_noise import GUARDED
from manyhands.methods.huscf.operations import (
    ADVERSARIAL_FORWARD,
    FAKE_FORWARD,
    GENERATOR_FORWARD,
    REAL_FORWARD,
    backward_of,
    network_of,
)
from manyhands.methods.huscf.spec import HuSCFSpec
from manyhands.methods.round_report import why_bad_loss
from manyhands.models.gan import run_blocks
from manyhands.seed import torch_rng
from manyhands.silos.flops import Meter
from manyhands.silos.local_training import load_optimiser_state, optimiser_state
from manyhands.silos.silo import Silo
from manyhands.tensors import Tensors, add_prefix, find_not_finite, running_average, snapshot, strip_prefix


class SiloSegments:
    """A silo's segments - the head and tail of both networks - and its side of an iteration.

    Args:
        method: The fields of the run.
        silo: The silo that trains.
        start: The weights of the segments that the server sent when the silo joined.
        number: The round that is open.
    """

    wire_rng: torch.Generator

    def __init__(self, method: HuSCFSpec, silo: Silo, start: Tensors, number: int) -> None:
        self.method, self.silo, self.cuts = method, silo, method.cuts_of(silo.name)
        self.network = method.model.build(0).keep(lambda name, block: self.cuts.of(name).at_home(block))
        self.network.to(silo.device_context.device)
        self.optimiser = method.training.optimiser_of(self.network, 0.0)
        self.meter = Meter(silo.device_context.known_flops)
        self.start = start
        self.restore()
        if number > self.means_taken:
            self.take_mean(start)

    @property
    def means_taken(self) -> int:
        """How many means of its cluster the silo has gone on from."""
        return int(self.silo.memory.get("taken", torch.tensor(0)))

    def restore(self) -> None:
        """Return to the weights and the optimiser's state of the start of the round."""
        self.network.load_state_dict(self.start)
        self.optimiser.state.clear()
        load_optimiser_state(self.optimiser, self.silo.memory)

    def trained(self) -> Tensors:
        """Return the trained weights to send, and keep the optimiser's state; ``Refused`` if they are not finite."""
        segments = snapshot(self.network.state_dict())
        if bad := find_not_finite(segments):
            raise Refused(Reason.NOT_FINITE, f"{bad} is not finite")
        self.method.check_weights(segments)
        self.silo.memory.keep(optimiser_state(self.optimiser))
        return segments

    def take_mean(self, segments: Tensors) -> None:
        """Go on from the mean of the silo's cluster, and take it into the average over rounds."""
        self.start = segments
        self.network.load_state_dict(segments)
        average = running_average(strip_prefix(self.silo.memory, AVERAGE), segments, self.method.ema, self.means_taken)
        self.silo.memory.keep({"taken": torch.tensor(self.means_taken + 1)} | add_prefix(average, AVERAGE))

    def round(self, number: int, steps: int) -> Generator[Message, Message, dict[str, Any]]:
        """Train for this many mini-batches, and return the facts of the round: loss, images seen and FLOPs.

        The loss is the discriminator's mean.
        """
        silo, training, before = self.silo, self.method.training, self.meter.flops
        training = training.model_copy(update={"steps": steps, "epochs": None})
        rng = silo.rng(number)
        self.wire_rng = torch_rng(silo.seed, silo.name, number, "wire", device=silo.device_context.device)
        training.set_rate(self.optimiser, self.method.progress(number))
        loader = BatchLoader(silo.images, silo.device_context.device)
        total, seen = torch.zeros((), device=silo.device_context.device), 0
        batches = list(training.batches(len(silo.images), rng))
        loader.announce(batches)
        for numbers in batches:
            x, labels = loader.batch(numbers)
            x = training.augmented(x, rng)
            condition = labels if self.method.model.classes else None
            z = torch.randn(len(x), self.method.model.latent, generator=rng, device=x.device)
            total += yield from self.iteration(x, condition, z)
            seen += len(x)
        loss = (total / steps).item()
        if why := why_bad_loss(loss):
            raise Refused(Reason.NOT_FINITE, why)
        return {"loss": loss, "seen": seen, "flops": self.meter.flops - before}

    def iteration(self, x: Tensor, labels: Tensor | None, z: Tensor) -> Generator[Message, Message, Tensor]:
        """Take one step of the discriminator and one of the generator, as a GAN that is not cut would.

        Args:
            x: Real images, of shape (B, C, H, W).
            labels: Their labels, of shape (B,), or None for a model without classes.
            z: The generator's noise, of shape (B, latent).
        """
        model, loss = self.method.model, torch.zeros((), device=x.device)
        fake = yield from self._forward(GENERATOR_FORWARD, z, labels)
        self.optimiser.zero_grad(set_to_none=True)
        for op, image, real in ((FAKE_FORWARD, fake.output.detach(), False), (REAL_FORWARD, x, True)):
            judged = yield from self._forward(op, image, labels)
            with self.meter.work(model, self.cuts, op, "judged", len(x)):
                value = model.discriminator_loss(judged.output, real=real)
                value.backward()
            yield from self._backward(op, judged)
            loss += value.detach()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        judged = yield from self._forward(ADVERSARIAL_FORWARD, fake.output, labels)
        with self.meter.work(model, self.cuts, ADVERSARIAL_FORWARD, "judged", len(x)):
            model.generator_loss(judged.output).backward()
        yield from self._backward(ADVERSARIAL_FORWARD, judged)
        yield from self._backward(GENERATOR_FORWARD, fake)
        self.network.discriminator.zero_grad(set_to_none=True)
        self.optimiser.step()
        return loss

    def _forward(self, op: str, x: Tensor, labels: Tensor | None) -> Generator[Message, Message, SiloPass]:
        """Run the head, have the server run its middle, and run the tail."""
        network = network_of(op)
        head, _, tail = self.cuts.of(network).parts(list(getattr(self.network, network)))
        with self.meter.work(self.method.model, self.cuts, op, "head", len(x)):
            sent = run_blocks(head, x, labels)
            if self.method.guard and op in GUARDED:
                sent = self.method.guard.hidden(sent, self.silo)
        answer = yield self._message(op, sent.detach())
        received = activations.decode(answer.tensors).to(x.device).requires_grad_()
        with self.meter.work(self.method.model, self.cuts, op, "tail", len(x)):
            output = run_blocks(tail, received)
        return SiloPass(sent, received, output)

    def _backward(self, op: str, forward: SiloPass) -> Conversation:
        """Send the gradient at the tail's input, and go on from the answer through the head."""
        assert forward.received.grad is not None
        answer = yield self._message(backward_of(op), forward.received.grad)
        with self.meter.work(self.method.model, self.cuts, op, "back", len(forward.sent)):
            forward.sent.backward(activations.decode(answer.tensors).to(forward.sent.device))

    def _message(self, op: str, x: Tensor) -> Message:
        return Message(op, activations.encode(x, self.method.bits, self.wire_rng))


class SiloPass(NamedTuple):
    """One forward pass of a batch of B images.

    Args:
        sent: What the head sent, of shape (B, *), attached to the head.
        received: What the tail received, of shape (B, *); after the loss's backward pass it has a gradient.
        output: What came out of the tail: images, of shape (B, C, H, W), or the discriminator's logits.
    """

    sent: Tensor
    received: Tensor
    output: Tensor
