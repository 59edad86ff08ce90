"""A silo's half of HuSCF-GAN: a plain step of a GAN with calls for the server's middle in it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manyhands.errors import Reason, Refused
from manyhands.messages.codec import activations
from manyhands.messages.message import Message
from manyhands.methods.base import Conversation
from manyhands.methods.huscf.guard import GUARDED
from manyhands.methods.huscf.order import BACK, network_of
from manyhands.methods.huscf.spec import HuSCFSpec
from manyhands.methods.local_training import odd_loss
from manyhands.models.gan import run_blocks
from manyhands.seed import torch_rng
from manyhands.silos.flops import Meter
from manyhands.silos.silo import Silo
from manyhands.silos.training import load_optimiser_state, optimiser_state
from manyhands.tensors import Tensors, finite, named, prefixed, running_average, snapshot


class SiloSegments:
    """What a silo has of both networks, and its side of an iteration."""

    chance: torch.Generator

    def __init__(self, method: HuSCFSpec, silo: Silo, start: Tensors, number: int) -> None:
        self.method, self.silo, self.cuts = method, silo, method.of(silo.name)
        self.network = method.model.build(0).keep(lambda name, block: self.cuts.of(name).at_home(block))
        self.network.to(silo.device_context.device)
        self.optimiser = method.training.optimiser_of(self.network, 0.0)
        self.meter = Meter(silo.device_context.known_flops)
        self.start = start
        self.restore()
        if number > self.taken:
            self.take(start)

    @property
    def taken(self) -> int:
        """How often it has taken what its cluster made of its ends."""
        return int(self.silo.memory.get("taken", torch.tensor(0)))

    def restore(self) -> None:
        """Go on from what was there when the round began."""
        self.network.load_state_dict(self.start)
        self.optimiser.state.clear()
        load_optimiser_state(self.optimiser, self.silo.memory)

    def ends(self) -> Tensors:
        """What is sent of it, if it is finite; what is not, the optimiser's memory, is kept."""
        ends = snapshot(self.network.state_dict())
        if bad := finite(ends):
            raise Refused(Reason.NOT_FINITE, f"{bad} is not finite")
        self.method.check_weights(ends)
        self.silo.memory = self.silo.memory | optimiser_state(self.optimiser)
        return ends

    def take(self, ends: Tensors) -> None:
        """Go on from what the cluster has made of it, and average that over rounds."""
        self.start = ends
        self.network.load_state_dict(ends)
        average = running_average(named(self.silo.memory, "average."), ends, self.method.ema, self.taken)
        taken = {"taken": torch.tensor(self.taken + 1)} | prefixed(average, "average.")
        self.silo.memory = self.silo.memory | taken

    def round(self, number: int, steps: int) -> Generator[Message, Message, dict[str, Any]]:
        """So many mini-batches; the mean loss of the discriminator."""
        silo, training, before = self.silo, self.method.training, self.meter.flops
        training = training.model_copy(update={"steps": steps, "epochs": None})
        rng, device = silo.rng(number), silo.device_context.device
        self.chance = torch_rng(silo.seed, silo.name, number, "wire", device=device)
        for group in self.optimiser.param_groups:
            group["lr"] = training.rate(self.method.progress(number))
        images, total, seen = silo.images.to(device), torch.zeros((), device=device), 0
        for numbers in list(training.batches(len(silo.images), rng)):
            x, labels = images.batch(numbers)
            known = labels if self.method.model.classes else None
            z = torch.randn(len(x), self.method.model.latent, generator=rng, device=x.device)
            total += yield from self.iteration(x, known, z)
            seen += len(x)
        loss = (total / steps).item()
        if why := odd_loss(loss):
            raise Refused(Reason.NOT_FINITE, why)
        return {"loss": loss, "seen": seen, "flops": self.meter.flops - before}

    def iteration(self, x: Tensor, labels: Tensor | None, z: Tensor) -> Generator[Message, Message, Tensor]:
        """One step of the discriminator, one of the generator, as a plain GAN would take them."""
        spec, loss = self.method.model, torch.zeros((), device=x.device)
        made = yield from self._there("make", z, labels)
        self.optimiser.zero_grad(set_to_none=True)
        for op, image, real in (("made", made.out.detach(), False), ("real", x, True)):
            judged = yield from self._there(op, image, labels)
            with self.meter.work(spec, self.cuts, op, "judged", len(x)):
                value = spec.discriminator_loss(judged.out, real=real)
                value.backward()
            yield from self._back(op, judged)
            loss += value.detach()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        judged = yield from self._there("fool", made.out, labels)
        with self.meter.work(spec, self.cuts, "fool", "judged", len(x)):
            spec.generator_loss(judged.out).backward()
        yield from self._back("fool", judged)
        yield from self._back("make", made)
        self.network.discriminator.zero_grad(set_to_none=True)
        self.optimiser.step()
        return loss

    def _there(self, op: str, x: Tensor, labels: Tensor | None) -> Generator[Message, Message, SiloPass]:
        """Through the head, the server's middle, and the tail."""
        network = network_of(op)
        head, _, tail = self.cuts.of(network).parts(list(getattr(self.network, network)))
        with self.meter.work(self.method.model, self.cuts, op, "head", len(x)):
            sent = run_blocks(head, x, labels)
            if self.method.guard and op in GUARDED:
                sent = self.method.guard.hidden(sent, self.silo)
        answer = yield self._says(op, sent.detach())
        got = activations.decode(answer.tensors).to(x.device).requires_grad_()
        with self.meter.work(self.method.model, self.cuts, op, "tail", len(x)):
            out = run_blocks(tail, got)
        return SiloPass(sent, got, out)

    def _back(self, op: str, there: SiloPass) -> Conversation:
        """The gradient goes back the same way."""
        assert there.got.grad is not None
        answer = yield self._says(op + BACK, there.got.grad)
        with self.meter.work(self.method.model, self.cuts, op, "back", len(there.sent)):
            there.sent.backward(activations.decode(answer.tensors).to(there.sent.device))

    def _says(self, op: str, x: Tensor) -> Message:
        return Message(op, activations.encode(x, self.method.bits, self.chance))


class SiloPass(NamedTuple):
    """One pass of a batch: what was sent of it, what came back, and what came of that."""

    sent: Tensor
    got: Tensor
    out: Tensor
