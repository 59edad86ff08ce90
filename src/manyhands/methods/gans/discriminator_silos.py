"""What MD-GAN and Federated Split GANs share: one generator on the server, a discriminator at each silo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import ClassVar

import torch
from torch import Tensor

from manyhands.data.loader import BatchLoader
from manyhands.diffusion.sampling import Sampling
from manyhands.errors import Refused
from manyhands.formatting import size_text
from manyhands.messages.facts import Flag
from manyhands.messages.message import Message
from manyhands.messages.operation import COUNT, IMAGES, Operation, Payload, next_round_facts, round_facts
from manyhands.messages.outgoing import Gradients, Weights
from manyhands.messages.plan import Plan
from manyhands.methods.base import Conversation
from manyhands.methods.gan_method import GanMethod
from manyhands.methods.gans.split_network import Chain
from manyhands.methods.learners.base import NOTHING, LocalResult
from manyhands.methods.round_report import update_facts, why_unusable
from manyhands.models.gan import GanModule
from manyhands.models.state_spec import state_spec_of
from manyhands.silos.flops import Meter
from manyhands.silos.local_training import load_optimiser_state, optimiser_state
from manyhands.silos.silo import Silo
from manyhands.tensors import StateSpec, Tensors, TensorSpec, add_prefix, snapshot, strip_prefix

DISCRIMINATOR = "discriminator."
FOR_DISCRIMINATOR, FOR_GENERATOR = "discriminator.", "generator."
"""Which network a batch of generated images trains: the prefixes of its tensors."""


class DiscriminatorSilosMethod(GanMethod, ABC):
    """In each mini-batch the server generates images, and silos send the gradient of the generator's loss at them.

    Silos train their discriminators on generated images and on their own. The server draws noise and labels, and steps
    by the mean of the silos' gradients.
    """

    round_end: ClassVar[str]
    """What a silo does at the end of a round, in words of the plan."""

    @property
    def made_at_once(self) -> int:
        """How many batches the server generates for all silos."""
        return 1

    @property
    def borders(self) -> tuple[int, ...]:
        """The first block of each device of a silo but the first; empty for one device."""
        return ()

    @abstractmethod
    def sends(self, number: int) -> bool:
        """Return whether silos send their discriminators at the end of this round."""

    def silo(self, silo: Silo) -> Conversation:
        """Join, then train the discriminator a mini-batch at a time; after a round it may be another one."""
        holds = bool(strip_prefix(silo.memory, DISCRIMINATOR))
        answer = yield Message("join", facts={"images": len(silo.images), "holds": holds})
        discriminator = SiloDiscriminator(self, silo)
        discriminator.take(dict(answer.tensors))
        while not answer.facts["done"]:
            number, sent, trained, why = answer.facts["round"], Tensors(), NOTHING, ""
            try:
                trained = yield from discriminator.round(number)
                why = discriminator.keep(trained)
            except Refused as refusal:
                why = str(refusal)
            if why:
                trained = trained._replace(loss=None)
            elif self.sends(number):
                sent = strip_prefix(silo.memory, DISCRIMINATOR)
            answer = yield Message("discriminator", sent, update_facts(silo, answer, trained, why))
            discriminator.take(dict(answer.tensors))

    def plan(self) -> Plan:
        """Generated images down and gradients up in each mini-batch; nothing of real images and labels."""
        spec, facts_down = self.discriminator_spec, next_round_facts(self.rounds)
        one, both = (
            self._fake_spec(FOR_DISCRIMINATOR),
            self._fake_spec(FOR_DISCRIMINATOR) | self._fake_spec(FOR_GENERATOR),
        )
        sends, most = any(self.sends(number) for number in range(self.rounds)), self.training.batch
        others: tuple[StateSpec, ...] = ({},) if sends else ()
        join = Operation(
            "says how many images it has and whether it has a discriminator already, gets one if not",
            "once", Payload(facts={"images": IMAGES, "holds": Flag()}), Payload(spec, facts_down, ({},)),
        )  # fmt: skip
        images = Operation(
            "asks for images that the server generates, with the labels that it drew for them", "in each mini-batch",
            Payload(facts={"count": COUNT}), Payload(both if self.made_at_once > 1 else one, {}, (one,), most),
            barrier=True,
        )  # fmt: skip
        feedback = Operation(
            "sends the gradient of the generator's loss at generated images", "in each mini-batch",
            Payload({"x": self._image()}, items=most), Payload(), barrier=True,
            outgoing=(Gradients(at="images that the server generated"),),
        )  # fmt: skip
        round_end = Operation(
            self.round_end, f"{self.rounds} times", Payload(spec if sends else {}, round_facts(self.rounds), others),
            Payload(spec if sends else {}, facts_down, others), barrier=True, closes_round=True,
            outgoing=(Weights(of="its discriminator", training=self.training),) if sends else (),
        )  # fmt: skip
        operations = {"join": join, "images": images, "feedback": feedback, "discriminator": round_end}
        return Plan(operations)

    def cost_lines(self, silos: int, sampling: Sampling) -> list[str]:
        """Return the traffic of a mini-batch, and the size of a discriminator."""
        image = 4 * self.model.channels * self.model.size**2
        down = min(self.made_at_once, silos, 2) * self.training.batch * (image + 8 * bool(self.model.classes))
        size = sum(spec.size * spec.dtype.itemsize for spec in self.discriminator_spec.values())
        return [
            f"a mini-batch of {self.training.batch} at each silo: {size_text(self.training.batch * image)} up and "
            f"{size_text(down)} down",
            f"a discriminator: {size_text(size)}",
        ]

    def upload_bytes(self, images: int) -> int:
        """Return the bytes of a gradient for each image of each mini-batch, and of discriminators."""
        image = 4 * self.model.channels * self.model.size**2
        batches = self.rounds * self.training.iterations(images) * self.training.batch
        return super().upload_bytes(images) + batches * image

    @property
    def discriminator_spec(self) -> StateSpec:
        """The names, shapes and types of a discriminator's weights."""
        return {name: spec for name, spec in state_spec_of(self.model).items() if name.startswith("discriminator.")}

    def _image(self) -> TensorSpec:
        return TensorSpec((None, self.model.channels, self.model.size, self.model.size), torch.float32)

    def _fake_spec(self, purpose: str) -> dict[str, TensorSpec]:
        labels = {f"{purpose}labels": TensorSpec((None,), torch.int64)} if self.model.classes else {}
        return {f"{purpose}images": self._image()} | labels


class SiloDiscriminator:
    """A silo's discriminator, and its side of an iteration.

    Args:
        method: The fields of the run.
        silo: The silo that trains.
    """

    def __init__(self, method: DiscriminatorSilosMethod, silo: Silo) -> None:
        self.method, self.silo, self.device = method, silo, silo.device_context.device
        self.network: GanModule = method.model.build(0).keep(lambda network, _: network == "discriminator")
        self.network.to(self.device)
        self.chain = Chain(list(self.network.discriminator), method.borders)
        self.optimiser = method.training.optimiser_of(self.network, 0.0)
        self.meter = Meter(silo.device_context.known_flops)

    def take(self, weights: Tensors) -> None:
        """Go on from the weights that the server sent, if it sent any; the optimiser's state stays."""
        self.silo.memory.keep(add_prefix(weights, DISCRIMINATOR))

    def keep(self, trained: LocalResult) -> str:
        """Keep the result of a round, or return why it cannot be kept."""
        weights = snapshot(self.network.state_dict())
        if why := why_unusable(trained, weights):
            return why
        self.silo.memory.keep(add_prefix(weights, DISCRIMINATOR) | optimiser_state(self.optimiser))
        return ""

    def round(self, number: int) -> Generator[Message, Message, LocalResult]:
        """Train a round from the kept weights; the result is not kept yet."""
        silo, method, before = self.silo, self.method, self.meter.flops
        self.network.load_state_dict(strip_prefix(silo.memory, DISCRIMINATOR))
        self.network.train()
        self.optimiser.state.clear()
        load_optimiser_state(self.optimiser, silo.memory)
        method.training.set_rate(self.optimiser, method.progress(number))
        loader, total = BatchLoader(silo.images, self.device), torch.zeros((), device=self.device)
        rng = silo.rng(number)
        batches = list(method.training.batches(len(silo.images), rng))
        loader.announce(batches)
        for numbers in batches:
            x, labels = loader.batch(numbers)
            x = method.training.augmented(x, rng)
            total += yield from self.iteration(x, labels if method.model.classes else None)
        return LocalResult(total.item() / len(batches), sum(map(len, batches)), self.meter.flops - before)

    def iteration(self, x: Tensor, labels: Tensor | None) -> Generator[Message, Message, Tensor]:
        """Take one step of the discriminator, send the generator's gradient, and return the discriminator's loss.

        Args:
            x: Real images, of shape (B, C, H, W).
            labels: Their labels, of shape (B,), or None for a model without classes.
        """
        answer = yield Message("images", {}, {"count": len(x)})
        fake, fake_labels = self._batch(answer, FOR_DISCRIMINATOR)
        has_another = f"{FOR_GENERATOR}images" in answer.tensors
        shown, shown_labels = self._batch(answer, FOR_GENERATOR) if has_another else (fake, fake_labels)
        with self.meter.work(self.method.model, "discriminator", len(x)):
            loss = self._train((fake, fake_labels, False), (x, labels, True))
            gradient = self._generator_gradient(shown, shown_labels)
        yield Message("feedback", {"x": gradient})
        return loss

    def _train(self, *batches: tuple[Tensor, Tensor | None, bool]) -> Tensor:
        loss = torch.zeros((), device=self.device)
        self.optimiser.zero_grad(set_to_none=True)
        for x, labels, real in batches:
            forward = self.chain.forward(x, labels)
            value = self.method.model.discriminator_loss(forward.output, real=real)
            forward.backward(value)
            loss += value.detach()
        self.optimiser.step()
        return loss

    def _generator_gradient(self, x: Tensor, labels: Tensor | None) -> Tensor:
        x = x.detach().requires_grad_()
        forward = self.chain.forward(x, labels)
        forward.backward(self.method.model.generator_loss(forward.output))
        assert x.grad is not None
        return x.grad

    def _batch(self, answer: Message, purpose: str) -> tuple[Tensor, Tensor | None]:
        labels = answer.tensors.get(f"{purpose}labels")
        images = answer.tensors[f"{purpose}images"].to(self.device)
        return images, None if labels is None else labels.to(self.device)
