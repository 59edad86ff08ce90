"""Trains a latent model, after silos got the frozen autoencoder and agreed on the normalization of latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch

from manyhands.data.latents import Latents, Moments, Normalization, normalization_of
from manyhands.data.rows import RowsBuffer
from manyhands.errors import CheckpointError, Reason, Refused
from manyhands.files.cache import cache_folder
from manyhands.formatting import size_text
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.messages.message import Message
from manyhands.messages.operation import IMAGES, Operation, Payload
from manyhands.messages.outgoing import Statistics
from manyhands.methods.learners.base import Learner, LocalResult, LocalRound, minimize
from manyhands.methods.learners.denoiser import denoising_loss
from manyhands.methods.server import Accumulated, Server, ServerWrapper
from manyhands.models.autoencoder import TrainedAutoencoder
from manyhands.models.latent import Latent
from manyhands.models.state_spec import state_spec_of
from manyhands.silos.flops import Meter
from manyhands.tensors import StateSpec, Tensors, TensorSpec, hash_tensor, sha256

if TYPE_CHECKING:
    from torch import Tensor

    from manyhands.methods.base import Conversation
    from manyhands.models.autoencoder import AutoencoderModule
    from manyhands.silos.silo import Silo

FETCH, AGREE = "autoencoder", "moments"
SUMS, SQUARES = "latents.sums", "latents.squares"
SHIFT, SCALE, HASH = "latents.shift", "latents.scale", "latents.hash"
BATCH = 64
MAX_SQUARE = 1e8
"""The server refuses latents with a channel whose mean square is larger."""
MAX_IN_MEMORY = 1 << 27
"""The most bytes of a silo's means, or deviations, of latents that are in memory; more are in a file."""
ROUNDING = 1e-9
"""By which share of itself a mean square may be less than the squared mean, where a channel hardly varies."""


class LatentLearner(Learner[Latent]):
    """Trains a U-Net on noised latents.

    Before the first round, silos get the frozen autoencoder, encode their images once, and agree on a shift and
    a scale of each channel.
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
        autoencoder = silo.latents.autoencoder if silo.latents else normalized(self.model.load(), silo.memory)
        return replace(self.generator(weights), autoencoder=autoencoder, scale=self.model.scale or 1.0)

    def operations(self) -> dict[str, Operation]:
        """Return the operations before the first round, which also run when a run is resumed."""
        weights = state_spec_of(self.model.autoencoder)
        agreed = self._by_channel(SHIFT, SCALE)
        others = () if self.model.scale else ({**weights, **agreed},)
        fetch = Operation("asks for the frozen autoencoder", "once", Payload(), Payload(weights, others=others))
        if self.model.scale:
            return {FETCH: fetch}
        agree = Operation(
            "sends the sums of its latents and of their squares, gets the shift and the scale that all silos use",
            "once",
            Payload(self._by_channel(SUMS, SQUARES), {"images": IMAGES}),
            Payload(agreed),
            barrier=True,
            outgoing=(Statistics(of=("for each channel the sum of its latents", "and the sum of their squares")),),
        )
        return {FETCH: fetch, AGREE: agree}

    def prepare(self, silo: Silo) -> Conversation:
        """Encode the silo's images once, and agree on the normalization; this sets ``latents`` of the silo."""
        answer = yield Message(FETCH)
        weights = {name: answer.tensors[name] for name in state_spec_of(self.model.autoencoder)}
        encoded = encode(silo, TrainedAutoencoder(self.model.autoencoder, weights))
        if self.model.scale:
            silo.latents = replace(encoded, scale=self.model.scale)
            return
        if SCALE not in answer.tensors:
            _, sums, squares = encoded.moments()
            try:
                answer = yield Message(AGREE, {SUMS: sums, SQUARES: squares}, {"images": len(silo.images)})
            except Refused as refusal:
                if refusal.reason is not Reason.STALE_ROUND:
                    raise
                answer = yield Message(FETCH)  # the others have agreed without this silo
        agreed = {name: answer.tensors[name] for name in (SHIFT, SCALE)}
        silo.latents = encoded.normalized(Normalization(agreed[SHIFT], agreed[SCALE]))
        silo.memory.keep(agreed)

    def _by_channel(self, *names: str) -> StateSpec:
        return {name: TensorSpec((self.model.autoencoder.latent,), torch.float64) for name in names}

    def wrap_server(self, inner: Server) -> Server:
        """Return a server that has the autoencoder and the normalization."""
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


def normalized(autoencoder: TrainedAutoencoder, state: Mapping[str, Tensor]) -> TrainedAutoencoder:
    """Return the autoencoder with the normalization of its latents that a state holds, or as it is if it holds none."""
    return autoencoder.normalized(state[SHIFT], state[SCALE]) if SCALE in state else autoencoder


class LatentServer(ServerWrapper):
    """Has the autoencoder, and the normalization of latents once silos have agreed on it.

    Args:
        model: The latent model.
        inner: The server that answers everything else.
    """

    def __init__(self, model: Latent, inner: Server) -> None:
        super().__init__(inner)
        self.model, self.trains = model, inner.trains
        self.trained = model.load()
        self.agreed: Tensors = {}
        self.hash = sha256(self.trained.weights)

    def handle(self, silo: str, message: Message) -> Message:
        """Send the autoencoder, and the normalization if it is agreed on."""
        if message.op != FETCH:
            return self.inner.handle(silo, message)
        return Message(FETCH, {**self.trained.weights, **self.agreed})

    def validate(self, silo: str, message: Message) -> None:
        """Refuse moments after the scale is agreed on, and moments that latents cannot have."""
        if message.op != AGREE:
            return self.inner.validate(silo, message)
        if self.agreed:
            raise Refused(Reason.STALE_ROUND, "the normalization of latents is agreed on already")
        numbers, sums, squares = self._moments(message)
        mean, square = sums / numbers, squares / numbers
        possible = (square > 0) & (square < MAX_SQUARE) & (mean.square() <= square * (1 + ROUNDING))
        if not possible.all():
            channel = int(possible.int().argmin())
            raise Refused(
                Reason.WRONG_WEIGHT,
                f"{silo} sends a mean of {mean[channel]:g} and a mean square of {square[channel]:g} for channel "
                f"{channel} of its latents, which no latents have: the square of the mean is at most the mean square, "
                f"which is over 0 and under {MAX_SQUARE:g}",
            )
        return None

    def accumulate(self, silo: str, message: Message) -> Accumulated:
        """Keep moments until the barrier."""
        return Accumulated(message) if message.op == AGREE else self.inner.accumulate(silo, message)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Answer all with the same shift and scale of each channel."""
        if op != AGREE:
            return self.inner.handle_barrier(op, messages)
        shift, scale = normalization_of([self._moments(messages[silo]) for silo in sorted(messages)])
        self.agreed = {SHIFT: shift, SCALE: scale}
        return {silo: Message(op, self.agreed) for silo in messages}

    def generator(self) -> DiffusionGenerator | TrainedAutoencoder | None:
        """Return the inner server's generator of latents, with the autoencoder that decodes them."""
        generator = self.inner.generator()
        if not isinstance(generator, DiffusionGenerator):
            return None
        autoencoder = normalized(self.trained, self.agreed)
        return replace(generator, autoencoder=autoencoder, scale=self.model.scale or 1.0)

    def state_dict(self) -> Tensors:
        """Return the normalization and the hash of its autoencoder, with the inner server's state."""
        return {**self.inner.state_dict(), **self.agreed, HASH: hash_tensor(self.hash)}

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a state of ``state_dict``; it must be of the same autoencoder."""
        if not torch.equal(state[HASH], hash_tensor(self.hash)):
            raise CheckpointError(f"{self.model.folder}: the autoencoder is not the one that the run started with")
        self.agreed = {name: state[name] for name in (SHIFT, SCALE) if name in state}
        self.inner.load_state_dict(self.inner_state(state))

    def inner_state(self, state: Tensors) -> Tensors:
        """Return everything but the normalization and the autoencoder's hash."""
        return {name: tensor for name, tensor in state.items() if name not in (SHIFT, SCALE, HASH)}

    def _moments(self, message: Message) -> Moments:
        """Return the moments that a silo sends; how many numbers a channel has follows from how many images."""
        numbers = message.facts["images"] * self.model.autoencoder.side**2
        return Moments(numbers, message.tensors[SUMS], message.tensors[SQUARES])
