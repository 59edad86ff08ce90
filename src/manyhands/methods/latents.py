"""Before a latent model is trained: the frozen autoencoder is handed out, and silos agree on one scale of latents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from manyhands.data.latents import Latents, Moments, latent_scale
from manyhands.errors import CheckpointError, Reason, Refused
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.messages.facts import Number, Whole
from manyhands.messages.message import Message
from manyhands.messages.operation import COUNT, IMAGES, Operation, Payload
from manyhands.methods.base import Server, ServerWrapper
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
"""The mean square of latents above which nobody is believed."""
SCALES = Number(0.0, 1e12)


def operations(model: Latent) -> dict[str, Operation]:
    """What passes before the first round, and when a run goes on."""
    weights = state_spec_of(model.autoencoder)
    fetch = Operation("asks for the frozen autoencoder", "once", Payload(), Payload(weights, {"scale": SCALES}))
    if model.scale is not None:
        return {FETCH: fetch}
    total = MAX_SQUARE * COUNT.maximum
    counted = {"images": IMAGES, "numbers": Whole(1, COUNT.maximum), "sum": Number(-total, total),
               "squares": Number(0.0, total)}  # fmt: skip
    agree = Operation(
        "tells how many numbers its latents are, their sum and that of their squares, gets the one scale of all silos",
        "once",
        Payload(facts=counted),
        Payload(facts={"scale": SCALES}),
        barrier=True,
    )
    return {FETCH: fetch, AGREE: agree}


def encoding(silo: Silo, model: Latent) -> Conversation:
    """The silo's half: encode its images once, and agree on the scale."""
    answer = yield Message(FETCH)
    encoded = encode(silo, TrainedAutoencoder(model.autoencoder, dict(answer.tensors)))
    scale = answer.facts["scale"]
    if not scale:
        told = {"images": len(silo.images), **encoded.moments()._asdict()}
        try:
            answer = yield Message(AGREE, {}, told)
        except Refused as refusal:
            if refusal.reason is not Reason.STALE_ROUND:
                raise
            answer = yield Message(FETCH)  # the others have agreed without it
        scale = answer.facts["scale"]
    silo.latents = replace(encoded, scale=scale)
    silo.memory |= {SCALE: torch.tensor(scale, dtype=torch.float64)}


def encode(silo: Silo, first: TrainedAutoencoder) -> Latents:
    """All images of a silo as latents."""
    network: AutoencoderModule = silo.device_context.network(first.model)
    network.load_state_dict(first.weights)
    network.eval()
    meter, means, deviations = Meter(silo.device_context.known_flops), [], []
    with torch.no_grad():
        for numbers in torch.arange(len(silo.images)).split(BATCH):
            x = silo.images.batch(numbers)[0].to(silo.device_context.device)
            with meter.work(first.model, "encode", len(numbers)):
                mean, log_variance = network.moments(x)
            means.append(mean.cpu())
            deviations.append((log_variance / 2).exp().cpu())
    return Latents(torch.cat(means), torch.cat(deviations), silo.images.labels, flops=meter.flops, autoencoder=first)


def encoding_flops(silo: Silo) -> int:
    """What encoding its images took a silo, told once."""
    if silo.latents is None:
        return 0
    flops, silo.latents = silo.latents.flops, replace(silo.latents, flops=0)
    return flops


class LatentServer(ServerWrapper):
    """Holds the autoencoder, and the scale once that is agreed; ``inner`` answers everything else."""

    def __init__(self, model: Latent, inner: Server) -> None:
        super().__init__(inner)
        self.model, self.trains = model, inner.trains
        self.trained = model.load()
        self.scale = model.scale or 0.0
        self.hash = sha256(self.trained.weights)

    def handle(self, silo: str, message: Message) -> Message:
        """The autoencoder, and the scale: 0 while there is none."""
        if message.op != FETCH:
            return self.inner.handle(silo, message)
        return Message(FETCH, self.trained.weights, {"scale": self.scale})

    def validate(self, silo: str, message: Message) -> None:
        """Refuse moments when the scale is agreed, and those that no latents have."""
        if message.op != AGREE:
            return self.inner.validate(silo, message)
        told = message.facts
        if self.scale:
            raise Refused(Reason.STALE_ROUND, "the scale of latents is agreed already")
        each = self.model.autoencoder.latent * self.model.autoencoder.side**2
        if told["numbers"] != told["images"] * each:
            raise Refused(Reason.WRONG_WEIGHT, f"{silo} tells of {told['numbers']} numbers, {each} are of an image")
        mean, square = told["sum"] / told["numbers"], told["squares"] / told["numbers"]
        if not (0 < square < MAX_SQUARE and abs(mean) < math.sqrt(square)):
            raise Refused(Reason.WRONG_WEIGHT, f"{silo} tells of moments that no latents have")
        return None

    def accumulate(self, silo: str, message: Message) -> Message:
        """Moments are kept until the barrier."""
        return message if message.op == AGREE else self.inner.accumulate(silo, message)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """The same scale for all."""
        if op != AGREE:
            return self.inner.handle_barrier(op, messages)
        told = [messages[silo].facts for silo in sorted(messages)]
        self.scale = latent_scale([Moments(each["numbers"], each["sum"], each["squares"]) for each in told])
        return {silo: Message(op, {}, {"scale": self.scale}) for silo in messages}

    def generator(self) -> DiffusionGenerator | TrainedAutoencoder | None:
        """That of the inner server, which draws latents, with what makes images of them."""
        found = self.inner.generator()
        return (
            replace(found, autoencoder=self.trained, scale=self.scale)
            if isinstance(found, DiffusionGenerator)
            else None
        )

    def state_dict(self) -> Tensors:
        """The scale, and which autoencoder it is of."""
        code = torch.tensor(list(bytes.fromhex(self.hash)), dtype=torch.uint8)
        scale = torch.tensor(self.scale, dtype=torch.float64)
        return {**self.inner.state_dict(), SCALE: scale, HASH: code}

    def load_state_dict(self, state: Tensors) -> None:
        """Go on with a kept scale; of another autoencoder it would mean nothing."""
        if bytes(state[HASH].tolist()).hex() != self.hash:
            raise CheckpointError(f"{self.model.folder}: is no longer the autoencoder that the run began with")
        self.scale = float(state[SCALE])
        self.inner.load_state_dict(self.inner_state(state))

    def inner_state(self, state: Tensors) -> Tensors:
        """All but the scale and the autoencoder's hash."""
        return {name: tensor for name, tensor in state.items() if name not in (SCALE, HASH)}
