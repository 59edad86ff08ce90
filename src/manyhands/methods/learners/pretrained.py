"""Trains a pretrained model, after each silo has shown that its frozen parts are those of the server."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from manyhands.errors import CheckpointError, Reason, RecipeError, Refused
from manyhands.generators.diffusion import DIFFUSERS_NAME, DiffusionGenerator
from manyhands.messages.facts import Text
from manyhands.messages.message import Message
from manyhands.messages.operation import Operation, Payload
from manyhands.methods.learners.base import Learner, LocalResult, LocalRound, minimize, pixel_batches
from manyhands.methods.learners.denoiser import denoising_loss
from manyhands.methods.learners.latent import encode, encoding_flops
from manyhands.methods.server import Server, ServerWrapper
from manyhands.models.pretrained import Pretrained
from manyhands.models.prompts import CLASS
from manyhands.models.state_spec import frozen_hash
from manyhands.tensors import hash_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from manyhands.diffusion.objective import Diffusion
    from manyhands.methods.base import Conversation
    from manyhands.methods.learners.base import BatchFunction
    from manyhands.silos.silo import Silo
    from manyhands.tensors import Tensors

COMPARE = "pretrained"
HASH = "pretrained.hash"
BETAS = ("beta_start", "beta_end")
TARGETS = {"epsilon": "eps", "v_prediction": "v", "flow_prediction": "flow"}


class PretrainedLearner(Learner[Pretrained]):
    """Trains a U-Net that was trained before, or adapters on it, on images or on latents.

    Before the first round, silos send the hash of their frozen weights, and encode their images where there is an
    autoencoder.
    """

    uses_diffusion: ClassVar[bool] = True

    def train_round(self, local: LocalRound) -> LocalResult:
        """Train for one round; the first one counts the FLOPs of encoding, too."""
        silo, rng = local.silo, local.silo.rng(local.number)
        result = minimize(self, local, denoising_loss(self, local, self._batch(local, rng), rng), rng)
        return result._replace(flops=result.flops + encoding_flops(silo))

    def generator(self, weights: Tensors) -> DiffusionGenerator:
        """Return the generator with these weights, and the frozen autoencoder where there is one."""
        scale, autoencoder = self.model.parts.scale, self.model.load_autoencoder()
        return DiffusionGenerator(
            self.model, self.diffusion, weights, ema=self.ema, autoencoder=autoencoder, scale=scale
        )

    def operations(self) -> dict[str, Operation]:
        """Return the operation before the first round, which also runs when a run is resumed."""
        if not self.model.has_frozen:
            return {}
        words = "says which frozen weights it has, by their hash"
        return {COMPARE: Operation(words, "once", Payload(facts={"hash": Text()}), Payload())}

    def prepare(self, silo: Silo) -> Conversation:
        """Compare the frozen weights with those of the server, and encode the silo's images where that is needed."""
        self._check_names(silo)
        if self.model.has_frozen:
            digest = silo.device_context.network(self.model).frozen_hash
            yield Message(COMPARE, facts={"hash": digest})
        if (autoencoder := self.model.load_autoencoder()) is not None:
            silo.latents = replace(encode(silo, autoencoder), scale=self.model.parts.scale)

    def wrap_server(self, inner: Server) -> Server:
        """Return a server that compares the hashes of silos with its own."""
        return PretrainedServer(self.model, inner) if self.model.has_frozen else inner

    def cost_lines(self) -> list[str]:
        """Return how many weights are frozen, and so are at every silo already."""
        count = self.model.frozen_count
        return [f"{count:,} frozen weights of {self.model.folder} are never sent"] if count else []

    def warnings(self) -> list[str]:
        """Return where the run's diffusion differs from that of the pretrained model."""
        return [
            f"method.diffusion: {name} is {ours!r}, but {self.model.folder} was trained with {theirs!r}"
            for name, ours, theirs in differences(self.diffusion, self.model.parts.scheduler)
        ]

    def _batch(self, local: LocalRound, rng: torch.Generator) -> BatchFunction:
        silo = local.silo
        if silo.latents is None:
            return pixel_batches(self, local, rng)
        return partial(silo.latents.to(silo.device_context.device).batch, rng=rng)

    def _check_names(self, silo: Silo) -> None:
        """Raise ``RecipeError`` where the prompts would name other classes than the images have."""
        model, names = self.model, tuple(silo.images.classes)
        named = model.names or tuple(map(str, range(model.classes)))
        if model.classes and model.parts.takes_text and CLASS in model.prompts and names != named:
            raise RecipeError(
                f"{silo.name}: its classes are {', '.join(names)}, but the prompts are made of {', '.join(named)}; set "
                "data.classes to their names, or method.model.prompts to a list of texts"
            )


def differences(diffusion: Diffusion, scheduler: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the fields in which an objective differs from a scheduler of diffusers: name, ours and theirs.

    Args:
        diffusion: The objective.
        scheduler: The entries of scheduler_config.json, some or all of which may be missing.
    """
    schedule, kinds = diffusion.schedule, {theirs: ours for ours, theirs in DIFFUSERS_NAME.items()}
    predicted, shape = scheduler.get("prediction_type"), scheduler.get("beta_schedule")
    if "FlowMatch" in str(scheduler.get("_class_name")):
        predicted = "flow_prediction"
    pairs = [
        ("target", diffusion.target, TARGETS.get(str(predicted), predicted)),
        ("schedule.kind", schedule.kind, kinds.get(str(shape), shape)),
        ("schedule.steps", schedule.steps, scheduler.get("num_train_timesteps")),
    ]
    if schedule.kind != "cosine":
        pairs += [(f"schedule.{name}", getattr(schedule, name), scheduler.get(name)) for name in BETAS]
    return [pair for pair in pairs if pair[2] is not None and pair[1] != pair[2]]


class PretrainedServer(ServerWrapper):
    """Has the hash of the frozen weights, and refuses a silo that has others.

    Args:
        model: The pretrained model.
        inner: The server that answers everything else.
    """

    def __init__(self, model: Pretrained, inner: Server) -> None:
        super().__init__(inner)
        self.model, self.trains = model, inner.trains
        self.hash = frozen_hash(model)

    def handle(self, silo: str, message: Message) -> Message:
        """Answer a silo that has the same frozen weights."""
        return Message(COMPARE) if message.op == COMPARE else self.inner.handle(silo, message)

    def validate(self, silo: str, message: Message) -> None:
        """Refuse a silo whose frozen weights are others."""
        if message.op != COMPARE:
            return self.inner.validate(silo, message)
        if message.facts["hash"] != self.hash:
            raise Refused(
                Reason.OTHER_WEIGHTS,
                f"the frozen weights of {silo} have the hash {message.facts['hash'][:12]}, those of the server "
                f"{self.hash[:12]}; {silo} needs the same files as the server in {self.model.folder}",
            )
        return None

    def state_dict(self) -> Tensors:
        """Return the hash of the frozen weights, with the inner server's state."""
        return {**self.inner.state_dict(), HASH: hash_tensor(self.hash)}

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a state of ``state_dict``; it must be of the same frozen weights."""
        if not torch.equal(state[HASH], hash_tensor(self.hash)):
            raise CheckpointError(f"{self.model.folder}: its frozen weights are not those that the run started with")
        self.inner.load_state_dict(self.inner_state(state))

    def inner_state(self, state: Tensors) -> Tensors:
        """Return everything but the hash."""
        return {name: tensor for name, tensor in state.items() if name != HASH}
