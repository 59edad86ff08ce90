"""What the methods have in common that train one network at each silo."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from manyhands.diffusion.objective import Diffusion
from manyhands.errors import printable
from manyhands.formatting import size_text
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.generators.gan import GanGenerator, generator_weights
from manyhands.messages.message import Message
from manyhands.messages.operation import MAX_LOSS, Operation
from manyhands.methods import latents
from manyhands.methods.base import Conversation, Method, Server, check_images
from manyhands.methods.distil import Teacher
from manyhands.methods.fedavg.proximal import Proximal
from manyhands.methods.latents import LatentServer
from manyhands.models.autoencoder import Autoencoder, TrainedAutoencoder
from manyhands.models.gan import Gan, iteration
from manyhands.models.latent import Latent
from manyhands.models.state_spec import state_spec_of
from manyhands.models.unet import UNet
from manyhands.silos.flops import Meter
from manyhands.silos.silo import Silo
from manyhands.silos.training import GanTraining, Training, steps
from manyhands.spec import Float
from manyhands.tensors import Tensors, find_not_finite

AnyModel = Annotated[UNet | Latent | Autoencoder | Gan, Field(discriminator="kind")]


class LocalResult(NamedTuple):
    """What came of a round of local training: the mean loss, how many images were seen, and the work it took."""

    loss: float | None = None
    seen: int = 0
    flops: int = 0


NOTHING = LocalResult()


class LocalTrainingMethod(Method, ABC):
    """A network, its objective, and what a silo does in a round.

    The network is a U-Net, that of a latent model, or an autoencoder for one, which has an objective of its own; or
    both networks of a GAN, whose training then is a ``GanTraining``.

    ``ema`` is the decay of the average over rounds that images are drawn from; 0 draws from the last weights.
    """

    model: AnyModel
    training: Training
    diffusion: Diffusion = Diffusion()
    ema: Float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _adversarial(cls, told: Any) -> Any:
        """A GAN is trained with what it is used to."""
        if not isinstance(told, dict) or not isinstance(training := told.get("training"), dict):
            return told
        model = told.get("model")
        kind = model.get("kind") if isinstance(model, dict) else getattr(model, "kind", None)
        return told | {"training": GanTraining.model_validate(training)} if kind == "gan" else told

    @model_validator(mode="after")
    def _trains_its_kind(self) -> Self:
        if isinstance(self.model, Gan) != isinstance(self.training, GanTraining):
            raise ValueError("a GAN, and nothing else, is trained by a GanTraining")
        return self

    def cited_parts(self) -> list[object]:
        """An autoencoder learns no diffusion, and neither does a GAN."""
        left_out = self.diffusion if isinstance(self.model, Autoencoder | Gan) else None
        return [part for part in super().cited_parts() if part is None or part is not left_out]

    def prepared_cost_lines(self) -> list[str]:
        """What passes before the first round, for people."""
        if not isinstance(self.model, Latent):
            return []
        count = sum(like.size for like in state_spec_of(self.model.autoencoder).values())
        return [f"before the first round each silo gets the autoencoder: {count:,} weights, {size_text(4 * count)}"]

    def prepared(self, silo: Silo) -> Conversation:
        """What a silo does before the first round, and when it goes on."""
        if isinstance(self.model, Latent):
            yield from latents.encoding(silo, self.model)

    def preparations(self) -> dict[str, Operation]:
        """The operations of that."""
        return latents.operations(self.model) if isinstance(self.model, Latent) else {}

    def prepared_server(self, inner: Server) -> Server:
        """A server that answers these, too."""
        return LatentServer(self.model, inner) if isinstance(self.model, Latent) else inner

    def check_silo(self, silo: Silo) -> None:
        """The silo's images must be of the model's size, and labelled if it is conditional."""
        check_images(silo, self.model, self.training.least)

    def progress(self, number: int) -> float:
        """The share of the run that is done before a round: 0 in the first, 1 in the last."""
        return number / max(self.rounds - 1, 1)

    def train_round(
        self,
        network: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        silo: Silo,
        number: int,
        pull: Proximal | None = None,
        teacher: Teacher | None = None,
    ) -> LocalResult:
        """One round of local training, held near to its start by the pull or taught by the teacher if there is one."""
        rng = silo.rng(number)
        if isinstance(self.model, Gan):
            return self._adversarial_round(self.model, network, optimiser, silo, rng)
        learn = teacher.lesson(network, silo, rng) if teacher else self._objective(network, silo, rng)

        def loss(numbers: Tensor) -> Tensor:
            value = learn(numbers)
            return pull.added_to(value) if pull else value

        batches = list(self.training.batches(len(silo.images), rng))
        autocast = self.training.autocasts(silo.device_context.device)
        total = torch.zeros((), device=silo.device_context.device)
        meter = Meter(silo.device_context.known_flops)
        told: dict[str, Any] = {"clip": self.training.clip, "autocast": autocast, "meter": meter}
        told["work"] = (self.model, teacher is not None)
        rate = self.training.rate(self.progress(number))
        for value in steps(network, optimiser, batches, loss, **told):
            total += value
            if pull:
                pull.after_step(rate)
        flops = meter.flops + latents.encoding_flops(silo)
        return LocalResult((total / len(batches)).item(), sum(map(len, batches)), flops)

    def _adversarial_round(
        self, model: Gan, networks: Any, optimiser: torch.optim.Optimizer, silo: Silo, rng: torch.Generator
    ) -> LocalResult:
        """One round of both networks of a GAN; the loss is the discriminator's."""
        device, meter = silo.device_context.device, Meter(silo.device_context.known_flops)
        images, total = silo.images.to(device), torch.zeros((), device=device)
        batches = list(self.training.batches(len(images), rng))
        networks.train()
        for numbers in batches:
            x, labels = images.batch(numbers)
            z = torch.randn(len(x), model.latent, generator=rng, device=x.device)
            with meter.work(model, "iteration", len(x)):
                total += iteration(model, networks, optimiser, x, labels if model.classes else None, z)[0]
        return LocalResult(total.item() / len(batches), sum(map(len, batches)), meter.flops)

    def _objective(self, network: Any, silo: Silo, rng: torch.Generator) -> Callable[[Tensor], Tensor]:
        """The loss on a batch of the silo's images, told by their numbers."""
        model, device = self.model, silo.device_context.device
        batch = partial(silo.latents.to(device).batch, rng=rng) if silo.latents else silo.images.to(device).batch
        if isinstance(model, Autoencoder):
            return lambda numbers: model.loss(network, batch(numbers)[0], rng)

        def loss(numbers: Tensor) -> Tensor:
            x_0, labels = batch(numbers)
            return self.diffusion.loss(network, x_0, labels if model.classes else None, model.classes, rng)

        return loss

    def generator_of(self, weights: Tensors) -> DiffusionGenerator | GanGenerator | TrainedAutoencoder:
        """What has these weights; one of latents is not whole yet."""
        if isinstance(self.model, Gan):
            return GanGenerator(self.model, generator_weights(weights), ema=self.ema)
        if isinstance(self.model, Autoencoder):
            return TrainedAutoencoder(self.model, weights, ema=self.ema)
        return DiffusionGenerator(self.model, self.diffusion, weights, ema=self.ema)

    def silo_generator_of(
        self, silo: Silo, weights: Tensors
    ) -> DiffusionGenerator | GanGenerator | TrainedAutoencoder | None:
        """What a silo has trained for itself, if it has."""
        found = self.generator_of(weights) if weights else None
        if not isinstance(self.model, Latent) or not isinstance(found, DiffusionGenerator):
            return found
        first = silo.latents.autoencoder if silo.latents else self.model.load()
        return replace(found, autoencoder=first, scale=float(silo.memory[latents.SCALE]))


def why_unusable(trained: LocalResult, weights: Tensors) -> str:
    """Why what came of training must not be sent or kept; nothing where it is well."""
    if why := why_bad_loss(trained.loss):
        return why
    return "its weights are not finite" if find_not_finite(weights) else ""


def why_bad_loss(loss: float | None) -> str:
    """Why a loss must not be told; nothing where it may."""
    if not math.isfinite(loss or 0):
        return "its loss is not finite"
    return f"its loss is beyond {MAX_LOSS:g}" if abs(loss or 0) > MAX_LOSS else ""


def update_facts(silo: Silo, answer: Message, trained: LocalResult = NOTHING, withheld: str = "") -> dict[str, object]:
    """What a silo tells of a round beside its tensors."""
    number = answer.facts["round"]
    return {"round": number, "images": len(silo.images), **trained._asdict(), "withheld": printable(withheld)}
