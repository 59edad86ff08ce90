"""Drawing across the cut: the server takes noise down to it, the silo takes that from there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from manyhands.diffusion.sample import Sampling
from manyhands.diffusion.squeeze import stretched
from manyhands.errors import Reason, Refused
from manyhands.generators.base import ImageGenerator
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.messages.facts import Number, Whole
from manyhands.messages.message import Message
from manyhands.messages.operation import COUNT, SEED, WORD, Operation, Payload
from manyhands.messages.outgoing import Statistics
from manyhands.models.unet import UNet
from manyhands.seed import torch_rng
from manyhands.tensors import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from manyhands.methods.base import ServerCall

MAX_DRAWN_IMAGES = 256
"""The most images of one call."""


def operation(model: UNet) -> Operation:
    """What a silo asks for when it draws, and what it gets."""
    shape = (None, model.channels, model.size, model.size)
    asked = {"labels": TensorSpec((None,), torch.int64, MAX_DRAWN_IMAGES)} if model.classes else {}
    facts = {
        "count": Whole(0, MAX_DRAWN_IMAGES),
        "to": COUNT,
        "seed": SEED,
        "steps": COUNT,
        "guidance": Number(0.0, 100.0),
        "sampler": WORD,
        "clip": Number(0.0, 1e30, or_none=True),
    }
    tells = "which classes, and " if model.classes else ""
    return Operation(
        f"asks for images that are half denoised: {tells}how many, down to which step",
        "whenever it draws",
        Payload(asked, facts),
        Payload({"images": TensorSpec(shape, torch.float32, MAX_DRAWN_IMAGES)}),
        draws=True,
        outgoing=(Statistics(of=("which classes it wants drawn",)),) if model.classes else (),
    )


def answered(generator: DiffusionGenerator, message: Message, clip: bool) -> Message:
    """The server's half: noise, taken down to where the silo asked for."""
    told = message.facts
    rng = torch_rng(told["seed"], "server", device=generator.device)
    sampling = sampling_of(message).model_copy(update={} if clip else {"clip": None})
    if not generator.model.classes:
        sampling = sampling.model_copy(update={"guidance": 1.0})
    x = generator.noise(told["count"], rng)
    labels = message.tensors.get("labels", torch.zeros(told["count"], dtype=torch.int64)).to(generator.device)
    return Message(message.op, {"images": generator.denoised(x, labels, told["to"], rng, sampling).cpu()})


def sampling_of(message: Message) -> Sampling:
    """How a silo wants to have it drawn, or a refusal of what cannot be."""
    try:
        return Sampling(**{name: message.facts[name] for name in ("sampler", "steps", "guidance", "clip")})
    except ValidationError as error:
        told = error.errors()[0]
        raise Refused(Reason.WRONG_FACTS, f"{told['loc'][0]}: {told['msg'][:200]}") from None


@dataclass(frozen=True)
class Relay(ImageGenerator):
    """What a silo draws from: the server by ``ask``, then from step ``cut`` its own network, ``home``, if any.

    ``asks`` is the step down to which the server is asked to go,
    ``enters`` is where in the chain the silo takes what it got to be, and ``steps`` in how many steps it finishes: by
    those of the whole chain if not told; it was ``taught`` to do so or not. ``told``: the server knows of classes.
    ``norm`` is what images were squeezed into, and are stretched from.
    """

    model: UNet
    ask: ServerCall
    cut: int
    asks: int
    enters: int
    home: DiffusionGenerator | None = None
    told: bool = False
    steps: int | None = None
    classes: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    device: str = "cpu"
    ema: float = 0.0
    taught: bool = False
    norm: float | None = None

    def _sample(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Tensor:
        return stretched(self._drawn(labels, rng, sampling), self.norm)

    def _drawn(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Tensor:
        x = self._asked(labels, rng, sampling)
        if self.home is None or self.cut == 0:
            return x
        if self.taught:  # what a student says of the clean image may lie outside of [-1, 1]
            sampling = sampling.model_copy(update={"clip": None, "sampler": "ddim"})
        return self.home.denoised(x, labels, 0, rng, sampling, self.enters, self.steps)

    def _asked(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Tensor:
        """What comes of the server, in calls of so many images as it answers."""
        if self.home is not None and self.cut == self.home.diffusion.schedule.steps:
            return self.home.noise(len(labels), rng)
        parts = [self.ask(self._call(part, rng, sampling)).tensors["images"] for part in labels.split(MAX_DRAWN_IMAGES)]
        return torch.cat(parts).to(labels.device)

    def _call(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Message:
        seed = int(torch.randint(2**62, (), generator=rng, device=labels.device))
        how: dict[str, Any] = sampling.model_dump(include={"steps", "guidance", "sampler", "clip"})
        facts = {"count": len(labels), "to": self.asks, "seed": seed, **how}
        return Message("denoise", {"labels": labels.cpu()} if self.told else {}, facts)
