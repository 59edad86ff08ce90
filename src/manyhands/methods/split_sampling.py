"""Drawing images across the cut: the server denoises down to it, and the silo goes on from there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from manyhands.diffusion.norm_bound import stretched
from manyhands.diffusion.sampling import Sampling
from manyhands.errors import Reason, Refused
from manyhands.generators.base import ImageGenerator
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.messages.facts import Number, Whole
from manyhands.messages.message import Message
from manyhands.messages.operation import COUNT, SEED, WORD, Operation, Payload
from manyhands.messages.outgoing import Statistics
from manyhands.models.base import Denoiser
from manyhands.seed import torch_rng
from manyhands.tensors import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from manyhands.methods.base import ServerCall

MAX_DRAWN_IMAGES = 256
"""The most images of one call."""


def operation(model: Denoiser) -> Operation:
    """Return the operation by which a silo asks the server for partly denoised images.

    Args:
        model: The server's network.
    """
    shape = (None, model.channels, model.size, model.size)
    labels = {"labels": TensorSpec((None,), torch.int64, MAX_DRAWN_IMAGES)} if model.classes else {}
    facts = {
        "count": Whole(0, MAX_DRAWN_IMAGES),
        "to": COUNT,
        "seed": SEED,
        "steps": COUNT,
        "guidance": Number(0.0, 100.0),
        "sampler": WORD,
        "clip": Number(0.0, 1e30, or_none=True),
    }
    classes = "which classes, and " if model.classes else ""
    return Operation(
        f"asks for partly denoised images: {classes}how many, and down to which timestep",
        "whenever it draws",
        Payload(labels, facts),
        Payload({"images": TensorSpec(shape, torch.float32, MAX_DRAWN_IMAGES)}),
        draws=True,
        outgoing=(Statistics(of=("which classes it wants drawn",)),) if model.classes else (),
    )


def server_answer(generator: DiffusionGenerator, message: Message, clip: bool) -> Message:
    """Return the server's half of drawing: noise that is denoised down to the step that the silo asked for.

    Args:
        generator: The server's network with its noise schedule.
        message: What the silo asks for.
        clip: Whether estimates of the clean image may be clipped as the silo asks.
    """
    facts = message.facts
    rng = torch_rng(facts["seed"], "server", device=generator.device)
    sampling = checked_sampling(message).model_copy(update={} if clip else {"clip": None})
    if not generator.model.classes:
        sampling = sampling.model_copy(update={"guidance": 1.0})
    x = generator.noise(facts["count"], rng)
    labels = message.tensors.get("labels", torch.zeros(facts["count"], dtype=torch.int64)).to(generator.device)
    return Message(message.op, {"images": generator.denoised(x, labels, facts["to"], rng, sampling).cpu()})


def checked_sampling(message: Message) -> Sampling:
    """Return how a silo wants images to be sampled, or raise ``Refused`` where that is not valid."""
    try:
        return Sampling.model_validate({name: message.facts[name] for name in ("sampler", "steps", "guidance", "clip")})
    except ValidationError as error:
        first = error.errors()[0]
        raise Refused(Reason.WRONG_FACTS, f"{first['loc'][0]}: {first['msg'][:200]}") from None


@dataclass(frozen=True)
class Relay(ImageGenerator):
    """Draws images in two parts: the server denoises down to the cut, and the silo's own network goes on from there.

    Args:
        model: The network that says which images and classes are drawn.
        ask: Sends a message to the server and returns the answer.
        cut: The step of the chain at which the silo's part begins; 0 where the server draws alone.
        server_stop: The step down to which the server denoises.
        silo_start: The step at which the silo's network takes over; above the cut in the authors' mode.
        silo_generator: The silo's own network, or None where the server draws alone.
        sends_labels: Whether the server's network is conditional, and is sent the labels.
        silo_steps: In how many steps the silo denoises; None takes those of the whole chain that are below the cut.
        classes: The names of the classes.
        sampling: How images are sampled.
        device: The device that the silo draws on.
        ema: The decay of the average over rounds that the weights are.
        distilled: Whether the silo's network was distilled to denoise in a few steps.
        norm: The norm that images were squeezed into before training; None for none.
    """

    model: Denoiser
    ask: ServerCall
    cut: int
    server_stop: int
    silo_start: int
    silo_generator: DiffusionGenerator | None = None
    sends_labels: bool = False
    silo_steps: int | None = None
    classes: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    device: str = "cpu"
    ema: float = 0.0
    distilled: bool = False
    norm: float | None = None

    def _sample(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Tensor:
        return stretched(self._squeezed(labels, rng, sampling), self.norm)

    def _squeezed(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Tensor:
        x = self._at_cut(labels, rng, sampling)
        if self.silo_generator is None or self.cut == 0:
            return x
        if self.distilled:  # a student's estimate of the clean image may lie outside of [-1, 1]
            sampling = sampling.model_copy(update={"clip": None, "sampler": "ddim"})
        return self.silo_generator.denoised(
            x, labels, t_to=0, rng=rng, sampling=sampling, t_from=self.silo_start, steps=self.silo_steps
        )

    def _at_cut(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Tensor:
        """Return images as the server's part leaves them, in calls of at most ``MAX_DRAWN_IMAGES``."""
        if self.silo_generator is not None and self.cut == self.silo_generator.diffusion.schedule.steps:
            return self.silo_generator.noise(len(labels), rng)
        parts = [self.ask(self._call(part, rng, sampling)).tensors["images"] for part in labels.split(MAX_DRAWN_IMAGES)]
        return torch.cat(parts).to(labels.device)

    def _call(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Message:
        seed = int(torch.randint(2**62, (), generator=rng, device=labels.device))
        options: dict[str, Any] = sampling.model_dump(include={"steps", "guidance", "sampler", "clip"})
        facts = {"count": len(labels), "to": self.server_stop, "seed": seed, **options}
        return Message("denoise", {"labels": labels.cpu()} if self.sends_labels else {}, facts)
