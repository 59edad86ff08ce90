"""What methods share whose silos each train a whole network, such as ``FedAvg`` and ``Local``."""

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
    """The statistics of a round of local training: the mean loss, the images seen, and the FLOPs."""

    loss: float | None = None
    seen: int = 0
    flops: int = 0


NOTHING = LocalResult()


class LocalTrainingMethod(Method, ABC):
    """A network, its objective, and one round of training at a silo.

    The network is a U-Net, a latent model, an autoencoder (which has an objective of its own), or both networks of a
    GAN, whose training is a ``GanTraining``.
    """

    model: AnyModel = Field(description="The network that each silo trains: a U-Net, latent model, autoencoder or GAN.")
    training: Training = Field(description="The local training of a round: batch, steps or epochs, and optimiser.")
    diffusion: Diffusion = Field(
        default=Diffusion(), description="The noise schedule and the objective; not used by a GAN or an autoencoder."
    )
    ema: Float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="The decay of the average of weights over rounds that images are drawn with; 0 uses the last "
        "weights.",
    )

    @model_validator(mode="before")
    @classmethod
    def _gan_defaults(cls, values: Any) -> Any:
        """Read the training of a GAN with the defaults that suit a GAN."""
        if not isinstance(values, dict) or not isinstance(training := values.get("training"), dict):
            return values
        model = values.get("model")
        kind = model.get("kind") if isinstance(model, dict) else getattr(model, "kind", None)
        return values | {"training": GanTraining.model_validate(training)} if kind == "gan" else values

    @model_validator(mode="after")
    def _training_fits_model(self) -> Self:
        if isinstance(self.model, Gan) != isinstance(self.training, GanTraining):
            raise ValueError("a GAN needs a GanTraining, and any other model a Training")
        return self

    def cited_parts(self) -> list[object]:
        """Return the parts whose papers are cited; without diffusion for an autoencoder or a GAN."""
        left_out = self.diffusion if isinstance(self.model, Autoencoder | Gan) else None
        return [part for part in super().cited_parts() if part is None or part is not left_out]

    def prepared_cost_lines(self) -> list[str]:
        """Return sentences about what is sent before the first round."""
        if not isinstance(self.model, Latent):
            return []
        count = sum(spec.size for spec in state_spec_of(self.model.autoencoder).values())
        return [f"before the first round each silo gets the autoencoder: {count:,} weights, {size_text(4 * count)}"]

    def prepared(self, silo: Silo) -> Conversation:
        """Run the silo's part before the first round, and when a run is resumed: encoding for a latent model."""
        if isinstance(self.model, Latent):
            yield from latents.prepare(silo, self.model)

    def preparations(self) -> dict[str, Operation]:
        """Return the operations of ``prepared``."""
        return latents.operations(self.model) if isinstance(self.model, Latent) else {}

    def prepared_server(self, inner: Server) -> Server:
        """Return a server that answers the operations of ``preparations``, too."""
        return LatentServer(self.model, inner) if isinstance(self.model, Latent) else inner

    def check_silo(self, silo: Silo) -> None:
        """Check that the images have the model's size, and labels if it is conditional."""
        check_images(silo, self.model, self.training.least)

    def progress(self, number: int) -> float:
        """Return the share of the run that is done before a round: 0 in the first round, 1 in the last."""
        return number / max(self.rounds - 1, 1)

    def train_round(
        self,
        network: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        silo: Silo,
        number: int,
        proximal: Proximal | None = None,
        teacher: Teacher | None = None,
    ) -> LocalResult:
        """Train a network for one round on a silo's images.

        Args:
            network: The network, with its weights of the start of the round.
            optimiser: Its optimiser.
            silo: The silo whose images it is trained on.
            number: The round.
            proximal: A term that keeps the weights near those of the start, or None.
            teacher: A network to distil instead of the usual objective, or None.
        """
        rng = silo.rng(number)
        if isinstance(self.model, Gan):
            return self._adversarial_round(self.model, network, optimiser, silo, rng)
        learn = teacher.lesson(network, silo, rng) if teacher else self._objective(network, silo, rng)

        def loss(numbers: Tensor) -> Tensor:
            value = learn(numbers)
            return proximal.added_to(value) if proximal else value

        batches = list(self.training.batches(len(silo.images), rng))
        autocast = self.training.autocasts(silo.device_context.device)
        total = torch.zeros((), device=silo.device_context.device)
        meter = Meter(silo.device_context.known_flops)
        options: dict[str, Any] = {"clip": self.training.clip, "autocast": autocast, "meter": meter}
        options["work"] = (self.model, teacher is not None)
        rate = self.training.rate(self.progress(number))
        for value in steps(network, optimiser, batches, loss, **options):
            total += value
            if proximal:
                proximal.after_step(rate)
        flops = meter.flops + latents.encoding_flops(silo)
        return LocalResult((total / len(batches)).item(), sum(map(len, batches)), flops)

    def _adversarial_round(
        self, model: Gan, networks: Any, optimiser: torch.optim.Optimizer, silo: Silo, rng: torch.Generator
    ) -> LocalResult:
        """Train both networks of a GAN for one round; the loss is the discriminator's."""
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
        """Return a function that gives the loss on a batch of the silo's images, for their numbers."""
        model, device = self.model, silo.device_context.device
        batch = partial(silo.latents.to(device).batch, rng=rng) if silo.latents else silo.images.to(device).batch
        if isinstance(model, Autoencoder):
            return lambda numbers: model.loss(network, batch(numbers)[0], rng)

        def loss(numbers: Tensor) -> Tensor:
            x_0, labels = batch(numbers)
            return self.diffusion.loss(network, x_0, labels if model.classes else None, model.classes, rng)

        return loss

    def generator_of(self, weights: Tensors) -> DiffusionGenerator | GanGenerator | TrainedAutoencoder:
        """Return the generator with these weights; that of a latent model still lacks its autoencoder."""
        if isinstance(self.model, Gan):
            return GanGenerator(self.model, generator_weights(weights), ema=self.ema)
        if isinstance(self.model, Autoencoder):
            return TrainedAutoencoder(self.model, weights, ema=self.ema)
        return DiffusionGenerator(self.model, self.diffusion, weights, ema=self.ema)

    def silo_generator_of(
        self, silo: Silo, weights: Tensors
    ) -> DiffusionGenerator | GanGenerator | TrainedAutoencoder | None:
        """Return the generator with a silo's own weights, or None where it has none."""
        generator = self.generator_of(weights) if weights else None
        if not isinstance(self.model, Latent) or not isinstance(generator, DiffusionGenerator):
            return generator
        autoencoder = silo.latents.autoencoder if silo.latents else self.model.load()
        return replace(generator, autoencoder=autoencoder, scale=float(silo.memory[latents.SCALE]))


def why_unusable(trained: LocalResult, weights: Tensors) -> str:
    """Return why the result of training must not be sent or kept, or "" where it may."""
    if why := why_bad_loss(trained.loss):
        return why
    return "its weights are not finite" if find_not_finite(weights) else ""


def why_bad_loss(loss: float | None) -> str:
    """Return why a loss must not be reported, or "" where it may."""
    if not math.isfinite(loss or 0):
        return "its loss is not finite"
    return f"its loss is larger than {MAX_LOSS:g}" if abs(loss or 0) > MAX_LOSS else ""


def update_facts(silo: Silo, answer: Message, trained: LocalResult = NOTHING, withheld: str = "") -> dict[str, object]:
    """Return the facts that a silo reports after a round, beside its tensors."""
    number = answer.facts["round"]
    return {"round": number, "images": len(silo.images), **trained._asdict(), "withheld": printable(withheld)}
