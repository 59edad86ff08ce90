"""The seam: a method is both halves of a conversation between silos and a server, in one place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, TypeAlias

import torch
from pydantic import Field

from manyhands.errors import RecipeError
from manyhands.methods.update_length import LENGTHS, UpdateLengths
from manyhands.spec import Int, Spec
from manyhands.tensors import add_prefix

if TYPE_CHECKING:
    from torch import Tensor

    from manyhands.diffusion.sample import Sampling
    from manyhands.generators.base import ImageGenerator
    from manyhands.generators.diffusion import DiffusionGenerator
    from manyhands.generators.gan import GanGenerator
    from manyhands.messages.message import Message
    from manyhands.messages.plan import Plan
    from manyhands.models.autoencoder import TrainedAutoencoder
    from manyhands.silos.silo import Silo
    from manyhands.tensors import Tensors

Conversation = Generator["Message", "Message", None]
TrainedModel: TypeAlias = "DiffusionGenerator | GanGenerator | TrainedAutoencoder"


class Release(NamedTuple):
    """Whose noised images are in a message, row by row, and how much is left of them.

    ``numbers`` are those of the silo's images; ``paths`` name what their noise is drawn from, and how they were scaled
    before: of two releases of one path the noisier tells nothing more. ``snr`` is the signal over the noise, infinite
    where there is none; ``mu`` the sensitivity over the deviation; ``label_epsilon`` that of a label told at random,
    and ``label_paths`` name what those are drawn from.
    """

    numbers: Tensor
    paths: list[bytes]
    snr: float
    mu: float
    label_epsilon: float = 0.0
    label_paths: tuple[bytes, ...] = ()


class Server(ABC):
    """The server's half of a method. It only answers, and may ``work`` meanwhile.

    Of its own work, done on ``device``: ``flops`` counts what it took and ``seen`` the images that were trained on, in
    all so far; ``loss`` is the mean of the round that was closed last, ``weighed`` how silos counted in it. Where it
    never ``trains``, it only adds up what others have trained. One that averages updates knows their ``lengths``.
    """

    trains: bool = True
    lengths: UpdateLengths | None = None
    round: int = 0
    flops: int = 0
    seen: int = 0
    loss: float | None = None
    device: torch.device = torch.device("cpu")
    weighed: Mapping[str, Mapping[str, float]] = MappingProxyType({})

    def handle(self, silo: str, message: Message) -> Message:
        """Answer an operation at once."""
        raise NotImplementedError(f"{type(self).__name__} answers no single operation, {silo} sent {message.op}")

    def validate(self, silo: str, message: Message) -> None:
        """Raise ``Refused`` for a message that is in the plan, but not for this silo now."""

    def accumulate(self, silo: str, message: Message) -> Message:
        """Take in a message of a group operation, and return what must be kept of it until the barrier.

        It is called in the order of the names of those awaited, so that what is summed here does not depend on who was
        first: a message that comes before its turn waits for it, whole.
        """
        return message

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Answer all who called a group operation, when everyone awaited has called."""
        raise NotImplementedError(f"{type(self).__name__} answers no group operation, {sorted(messages)} sent {op}")

    def train_step(self) -> bool:
        """Do a piece of the work that the open round asks of the server itself; False when none is left.

        A link calls it whenever nobody waits for an answer. What comes of it must not depend on when it is called.
        """
        return False

    def generator(self) -> TrainedModel | None:
        """The trained generator that all share, or None where there is none."""
        return None

    def stores(self) -> Mapping[str, Tensors]:
        """What is kept once, beside the state: it never changes when it is there. Written with the next round."""
        return {}

    def load_stores(self, stores: Mapping[str, Tensors]) -> None:
        """Go on with kept stores; called before ``load_state_dict``."""

    def resume(self, number: int, stores: Mapping[str, Tensors], state: Tensors) -> None:
        """Go on where so many rounds were closed."""
        self.round = number
        self.load_stores(stores)
        self.load_state_dict(state)

    def go_back(self, state: Tensors) -> str | None:
        """Take up the state of an earlier round within this one, because no silo can train what the last one made.

        Returns who is left out of the next round for it (empty: nobody), or None for a server that averages nothing.
        """
        if self.lengths is None:
            return None
        self.load_state_dict(state | add_prefix(self.lengths.state_dict(), LENGTHS))
        return self.lengths.leave_out_mover()

    @abstractmethod
    def state_dict(self) -> Tensors:
        """All that the server must keep to go on from a closed round, but for the round's number."""

    @abstractmethod
    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a kept state; ``round`` is set already."""


class ServerWrapper(Server):
    """A server that answers some operations itself, and leaves the others to the ``inner`` one."""

    def __init__(self, inner: Server) -> None:
        self.inner = inner

    @property
    def round(self) -> int:
        """That of the inner server."""
        return self.inner.round

    @round.setter  # noqa: A003 - the property above
    def round(self, number: int) -> None:
        self.inner.round = number

    def handle(self, silo: str, message: Message) -> Message:
        """What the inner server answers."""
        return self.inner.handle(silo, message)

    def validate(self, silo: str, message: Message) -> None:
        """What the inner server refuses."""
        self.inner.validate(silo, message)

    def accumulate(self, silo: str, message: Message) -> Message:
        """What the inner server keeps."""
        return self.inner.accumulate(silo, message)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """What the inner server answers."""
        return self.inner.handle_barrier(op, messages)

    def go_back(self, state: Tensors) -> str | None:
        """As the inner server does; what this one has is not what silos train."""
        return self.inner.go_back(self.inner_state(state))

    def inner_state(self, state: Tensors) -> Tensors:
        """What of a kept state is the inner server's."""
        return state


class ImageShape(Protocol):
    """What every model says of the images that it is for."""

    @property
    def size(self) -> int:
        """The side of an image."""
        ...

    @property
    def channels(self) -> int:
        """1 or 3, mostly."""
        ...

    @property
    def classes(self) -> int:
        """How many there are; 0 where it knows of none."""
        ...


ServerCall = Callable[["Message"], "Message"]
"""Carries a message to the server and brings its answer, or raises ``Refused``."""


class Method(Spec, ABC):
    """A way of training together. Its fields are its hyper-parameters.

    ``pools`` marks a baseline that is given all images in one silo.
    """

    pools: ClassVar[bool] = False
    rounds: Int = Field(ge=1, le=1_000_000)

    @abstractmethod
    def silo(self, silo: Silo) -> Conversation:
        """The silo's half: an ordinary loop that yields what it sends and receives the answer.

        No autocast, no_grad or other context may be held over a yield: other silos run in between.
        """

    @abstractmethod
    def server(self, seed: int, silos: Mapping[str, int]) -> Server:
        """The server's half, at the start of a run with these silos."""

    @abstractmethod
    def plan(self) -> Plan:
        """Every operation, and what it may carry each way."""

    def cost_lines(self, silos: int, sampling: Sampling) -> list[str]:
        """What so many silos put on the wire, and what else must be known before it is run, for people."""
        return []

    def upload_bytes(self, images: int) -> int:
        """About how many bytes a silo with so many images sends in all: each operation once, or once a round."""
        operations = self.plan().operations.values()
        return sum((self.rounds if each.closes_round else 1) * each.up.tensor_bytes for each in operations)

    def warnings(self, roster: Mapping[str, int]) -> list[str]:
        """What whoever starts a run with these silos, and so many images at each, should know before."""
        return []

    def costs(self, silo: str, images: int, sampling: Sampling) -> dict[str, float]:
        """What a silo with so many images pays, where that differs from the work of a whole network."""
        return {}

    @property
    def hides(self) -> bool:
        """Whether what it sends is hidden by noise, which must come from a secret of the silo."""
        return False

    def release_in(self, silo: Silo, message: Message) -> Release | None:
        """The images that a message of this silo gives away for good, noised; None where there are none in it."""
        return None

    def check_silo(self, silo: Silo) -> None:
        """Raise ``RecipeError`` where this method cannot work with what a silo has."""

    def silo_generator(self, silo: Silo) -> TrainedModel | None:
        """The generator that this silo keeps for itself, or None where there is none."""
        return None

    def generator_for(
        self, silo: str, shared: TrainedModel | None, own: TrainedModel | None, ask: ServerCall
    ) -> TrainedModel | ImageGenerator | None:
        """What this silo draws images from: its own generator where it has one, else the shared one.

        ``ask`` reaches the server, for a method whose silos cannot draw without it.
        """
        return own or shared


def check_images(silo: Silo, model: ImageShape, least: int = 1) -> None:
    """Raise ``RecipeError`` where a silo's images are too few, not of the model's size, or not labelled as it asks."""
    images = silo.images
    if not len(images):
        raise RecipeError(f"{silo.name}: holds no images")
    if len(images) < least:
        raise RecipeError(f"{silo.name}: holds {len(images)} images, at least {least} are needed")
    if tuple(images.pixels.shape[1:]) != (model.channels, model.size, model.size):
        shape = " x ".join(map(str, images.pixels.shape[1:]))
        raise RecipeError(f"{silo.name}: holds images of {shape}, the model is for {model.channels} x {model.size}")
    if model.classes and images.labels is None:
        raise RecipeError(f"{silo.name}: has no labels; use a model with classes = 0")
    if model.classes and len(images.classes) != model.classes:
        raise RecipeError(f"{silo.name}: has {len(images.classes)} classes, the model is for {model.classes}")
