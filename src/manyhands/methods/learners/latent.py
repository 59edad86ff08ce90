"""Trains a latent model, after silos got the frozen autoencoder and agreed on one scale of latents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch

from manyhands.data.latents import Latents, Moments, latent_scale
from manyhands.data.rows import RowsBuffer
from manyhands.errors import CheckpointError, Reason, Refused
from manyhands.files.cache import cache_folder
from manyhands.formatting import size_text
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.messages.facts import Number, Whole
from manyhands.messages.message import Message
from manyhands.messages.operation import COUNT, IMAGES, Operation, Payload
from manyhands.methods.learners.base import Learner, LocalResult, LocalRound, minimize
from manyhands.methods.learners.denoiser import denoising_loss
from manyhands.methods.server import Accumulated, Server, ServerWrapper
from manyhands.models.autoencoder import TrainedAutoencoder
from manyhands.models.latent import Latent
from manyhands.models.state_spec import state_spec_of
from manyhands.silos.flops import Meter
from manyhands.tensors import Tensors, sha256

if TYPE_CHECKING:
    from manyhands.methods.base import Conversation
    from manyhands.models.autoencoder import AutoencoderModule
    from manyhands.silos.silo import Silo

FETCH, AGREE = "autoencoder", "moments"
SCALE, HASH = "latents.scale", "latents.hash"
BATCH = 64
MAX_SQUARE = 1e8
"""The server refuses latents with a larger mean square."""
MAX_IN_MEMORY = 1 << 27
"""The most bytes of a silo's means, or deviations, of latents that are in memory; more are in a file."""
SCALES = Number(0.0, 1e12)


class LatentLearner(Learner[Latent]):
    """Trains a U-Net on noised latents.

    Before the first round, silos get the frozen autoencoder, encode their images once, and agree on one scale.
    """

    uses_diffusion: ClassVar[bool] = True

    def train_round(self, local: LocalRound) -> LocalResult:
        """Train for one round; the first one counts the FLOPs of encoding, too."""
        silo, rng = local.silo, local.silo.rng(local.number)
        assert silo.latents is not None, "prepare sets them"
        batch = partial(silo.latents.to(silo.device_context.device).batch, rng=rng)
        result = minimize(self, local, denoising_loss(self, local, batch, rng), rng)
        return result._replace(flops=result.flops + encoding_flops(silo))

    def generator(self, weights: Tensors) -> DiffusionGenerator:
        """Return the generator of latents, which still lacks its autoencoder."""
        return DiffusionGenerator(self.model, self.diffusion, weights, ema=self.ema)

    def silo_generator(self, silo: Silo, weights: Tensors) -> DiffusionGenerator | None:
        """Return the generator with a silo's own weights, and the autoencoder that decodes its latents."""
        if not weights:
            return None
        autoencoder = silo.latents.autoencoder if silo.latents else self.model.load()
        return replace(self.generator(weights), autoencoder=autoencoder, scale=float(silo.memory[SCALE]))

    def operations(self) -> dict[str, Operation]:
        """Return the operations before the first round, which also run when a run is resumed."""
        weights = state_spec_of(self.model.autoencoder)
        fetch = Operation("asks for the frozen autoencoder", "once", Payload(), Payload(weights, {"scale": SCALES}))
        if self.model.scale is not None:
            return {FETCH: fetch}
        total = MAX_SQUARE * COUNT.maximum
        facts = {"images": IMAGES, "numbers": Whole(1, COUNT.maximum), "sum": Number(-total, total),
                 "squares": Number(0.0, total)}  # fmt: skip
        agree = Operation(
            "sends the count, sum and sum of squares of its latents, gets the scale that all silos use",
            "once",
            Payload(facts=facts),
            Payload(facts={"scale": SCALES}),
            barrier=True,
        )
        return {FETCH: fetch, AGREE: agree}

    def prepare(self, silo: Silo) -> Conversation:
        """Encode the silo's images once, and agree on the scale; this sets ``latents`` of the silo."""
        answer = yield Message(FETCH)
        encoded = encode(silo, TrainedAutoencoder(self.model.autoencoder, dict(answer.tensors)))
        scale = answer.facts["scale"]
        if not scale:
            moments = {"images": len(silo.images), **encoded.moments()._asdict()}
            try:
                answer = yield Message(AGREE, {}, moments)
            except Refused as refusal:
                if refusal.reason is not Reason.STALE_ROUND:
                    raise
                answer = yield Message(FETCH)  # the others have agreed without this silo
            scale = answer.facts["scale"]
        silo.latents = replace(encoded, scale=scale)
        silo.memory.keep({SCALE: torch.tensor(scale, dtype=torch.float64)})

    def wrap_server(self, inner: Server) -> Server:
        """Return a server that has the autoencoder and the scale."""
        return LatentServer(self.model, inner)

    def cost_lines(self) -> list[str]:
        """Return the size of the autoencoder."""
        count = sum(spec.size for spec in state_spec_of(self.model.autoencoder).values())
        return [f"before the first round each silo gets the autoencoder: {count:,} weights, {size_text(4 * count)}"]


def encode(silo: Silo, autoencoder: TrainedAutoencoder) -> Latents:
    """Return the mean and standard deviation of the latents of all images of a silo.

    Args:
        silo: The silo.
        autoencoder: The autoencoder that encodes them.
    """
    network: AutoencoderModule = silo.device_context.network(autoencoder.model)
    network.load_state_dict(autoencoder.weights)
    network.eval()
    meter = Meter(silo.device_context.known_flops)
    means, deviations = (RowsBuffer(cache_folder(), MAX_IN_MEMORY) for _ in range(2))
    with torch.no_grad():
        for numbers in torch.arange(len(silo.images)).split(BATCH):
            x = silo.images.batch(numbers)[0].to(silo.device_context.device)
            with meter.work(autoencoder.model, "encode", len(numbers)):
                mean, log_variance = network.moments(x)
            means.add(mean.cpu())
            deviations.add((log_variance / 2).exp().cpu())
    labels = silo.images.labels
    return Latents(means.rows(), deviations.rows(), labels, flops=meter.flops, autoencoder=autoencoder)


def encoding_flops(silo: Silo) -> int:
    """Return the FLOPs that encoding took a silo; 0 from the second call on."""
    if silo.latents is None:
        return 0
    flops, silo.latents = silo.latents.flops, replace(silo.latents, flops=0)
    return flops


class LatentServer(ServerWrapper):
    """Has the autoencoder, and the scale once silos have agreed on it.

    Args:
        model: The latent model.
        inner: The server that answers everything else.
    """

    def __init__(self, model: Latent, inner: Server) -> None:
        super().__init__(inner)
        self.model, self.trains = model, inner.trains
        self.trained = model.load()
        self.scale = model.scale or 0.0
        self.hash = sha256(self.trained.weights)

    def handle(self, silo: str, message: Message) -> Message:
        """Send the autoencoder and the scale, which is 0 before it is agreed on."""
        if message.op != FETCH:
            return self.inner.handle(silo, message)
        return Message(FETCH, self.trained.weights, {"scale": self.scale})

    def validate(self, silo: str, message: Message) -> None:
        """Refuse moments after the scale is agreed on, and moments that latents cannot have."""
        if message.op != AGREE:
            return self.inner.validate(silo, message)
        facts = message.facts
        if self.scale:
            raise Refused(Reason.STALE_ROUND, "the scale of latents is agreed on already")
        expected = facts["images"] * self.model.autoencoder.latent * self.model.autoencoder.side**2
        if facts["numbers"] != expected:
            raise Refused(Reason.WRONG_WEIGHT, f"{silo} counts {facts['numbers']} latent values, expected {expected}")
        mean, square = facts["sum"] / facts["numbers"], facts["squares"] / facts["numbers"]
        if not (0 < square < MAX_SQUARE and abs(mean) < math.sqrt(square)):
            raise Refused(Reason.WRONG_WEIGHT, f"{silo} sends a mean and a mean square that latents cannot have")
        return None

    def accumulate(self, silo: str, message: Message) -> Accumulated:
        """Keep moments until the barrier."""
        return Accumulated(message) if message.op == AGREE else self.inner.accumulate(silo, message)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Answer all with the same scale."""
        if op != AGREE:
            return self.inner.handle_barrier(op, messages)
        reports = [messages[silo].facts for silo in sorted(messages)]
        self.scale = latent_scale([Moments(facts["numbers"], facts["sum"], facts["squares"]) for facts in reports])
        return {silo: Message(op, {}, {"scale": self.scale}) for silo in messages}

    def generator(self) -> DiffusionGenerator | TrainedAutoencoder | None:
        """Return the inner server's generator of latents, with the autoencoder that decodes them."""
        generator = self.inner.generator()
        if not isinstance(generator, DiffusionGenerator):
            return None
        return replace(generator, autoencoder=self.trained, scale=self.scale)

    def state_dict(self) -> Tensors:
        """Return the scale and the hash of its autoencoder, with the inner server's state."""
        digest = torch.tensor(list(bytes.fromhex(self.hash)), dtype=torch.uint8)
        scale = torch.tensor(self.scale, dtype=torch.float64)
        return {**self.inner.state_dict(), SCALE: scale, HASH: digest}

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a state of ``state_dict``; it must be of the same autoencoder."""
        if bytes(state[HASH].tolist()).hex() != self.hash:
            raise CheckpointError(f"{self.model.folder}: the autoencoder is not the one that the run started with")
        self.scale = float(state[SCALE])
        self.inner.load_state_dict(self.inner_state(state))

    def inner_state(self, state: Tensors) -> Tensors:
        """Return everything but the scale and the autoencoder's hash."""
        return {name: tensor for name, tensor in state.items() if name not in (SCALE, HASH)}
