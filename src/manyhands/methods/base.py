"""The base classes of a method of collaboration: both halves of a conversation between silos and a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

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
    from manyhands.models.base import Model
    from manyhands.silos.silo import Silo
    from manyhands.tensors import Tensors

Conversation = Generator["Message", "Message", None]
"""A silo's half of a method: it yields the messages that it sends, and receives the answers."""
TrainedModel: TypeAlias = "DiffusionGenerator | GanGenerator | TrainedAutoencoder"


class Release(NamedTuple):
    """Which of a silo's images are in a message with noise on them, and how much that says about each.

    Of two releases that share a path of noise, the noisier one says nothing that the other does not.

    Args:
        numbers: The numbers of the silo's images, of shape (B,).
        paths: For each image, a name of the noise that was drawn for it and of how the image was scaled before.
        snr: The ratio of signal to noise power; infinite without noise.
        mu: The sensitivity divided by the standard deviation of the noise (Gaussian differential privacy).
        label_epsilon: The epsilon of a label that is replaced at random; 0 where no such label is sent.
        label_paths: For each image, a name of the randomness that its label was replaced with.
    """

    numbers: Tensor
    paths: list[bytes]
    snr: float
    mu: float
    label_epsilon: float = 0.0
    label_paths: tuple[bytes, ...] = ()


class Accumulated(NamedTuple):
    """What ``Server.accumulate`` did with a message of a group operation.

    Args:
        message: What of it is kept until the barrier.
        taken: Whether the server has added it up, and so cannot do without it. A silo that restarts and sends it again
            is then answered without another ``accumulate``; where False, the newer message replaces the earlier one.
    """

    message: Message
    taken: bool = False


class Server(ABC):
    """The server's half of a method. It answers messages of silos, and may train between them.

    The smallest server has ``state_dict``, ``load_state_dict`` and whatever its plan needs: ``handle`` for operations
    that are answered at once, ``handle_barrier`` for group operations. It is driven in this order:

    1. ``validate`` is called for every message that fits the plan. It raises ``Refused`` for what must not be taken
       from this silo now, and changes nothing.
    2. An operation of one silo goes to ``handle``, which returns the answer.
    3. A message of a group operation goes to ``accumulate`` (in the order of the silos' names), and when all awaited
       silos have called, ``handle_barrier`` answers them together. In the operation that closes a round it adds 1 to
       ``round``.
    4. While nobody waits for an answer, ``train_step`` is called until it returns False.
    5. After each closed round ``state_dict`` is written to the checkpoint. ``resume`` restores it.

    A server has no clock, no thread and no random state of its own: draw from ``seed.torch_rng(seed, ..., round)``, so
    that a run that is resumed ends in the same bits. It never sees a silo's objects, only messages.

    Attributes:
        trains: False where the server only averages what silos have trained.
        lengths: The lengths of the updates, where it averages updates; they let a run go back a round.
        round: The number of closed rounds, which is also the number of the open round.
        flops: The floating-point operations of the server's own training so far.
        seen: The images that the server itself was trained on so far.
        loss: The mean loss of the server's own training in the last closed round, or None.
        device: The device that the server trains on.
        weighed: How each silo counted in the last closed round, for the journal and the report.
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
        """Answer an operation of a single silo at once.

        Args:
            silo: The name of the silo.
            message: What it sent; it fits the plan and has passed ``validate``.
        """
        raise NotImplementedError(
            f"{silo} sent {message.op}, which {type(self).__name__} does not answer by itself; override handle"
        )

    def validate(self, silo: str, message: Message) -> None:
        """Raise ``Refused`` for a message that fits the plan, but must not come from this silo now.

        Args:
            silo: The name of the silo.
            message: What it sent.
        """

    def accumulate(self, silo: str, message: Message) -> Accumulated:
        """Take in a message of a group operation, and return what of it is kept until the barrier.

        It is called in the order of the silos' names: a message that comes early waits, so that the order of a sum does
        not depend on who was first. By default nothing is added up, and the whole message is kept.

        Args:
            silo: The name of the silo.
            message: What it sent.
        """
        return Accumulated(message)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Answer all silos that called a group operation, once everyone awaited has called.

        Args:
            op: The name of the operation.
            messages: The messages that ``accumulate`` returned, by silo. A silo that was left out is not in it.

        Returns:
            An answer for each silo in ``messages``.
        """
        raise NotImplementedError(
            f"{sorted(messages)} sent {op}, a group operation that {type(self).__name__} does not answer; "
            "override handle_barrier"
        )

    def train_step(self) -> bool:
        """Do one piece of the server's own training in the open round, and return False when none is left.

        A link calls it whenever nobody waits for an answer. The result must not depend on when it is called.
        """
        return False

    def generator(self) -> TrainedModel | None:
        """Return the trained generator that all silos share, or None where there is none."""
        return None

    def stores(self) -> Mapping[str, Tensors]:
        """Return tensors that are written once, beside the state, because they never change after they are there."""
        return {}

    def load_stores(self, stores: Mapping[str, Tensors]) -> None:
        """Restore what ``stores`` returned. It is called before ``load_state_dict``.

        Args:
            stores: The stored tensors, by name of the store.
        """

    def resume(self, number: int, stores: Mapping[str, Tensors], state: Tensors) -> None:
        """Restore the server as it was after a closed round.

        Args:
            number: The number of rounds that were closed.
            stores: What ``stores`` returned.
            state: What ``state_dict`` returned.
        """
        self.round = number
        self.load_stores(stores)
        self.load_state_dict(state)

    def go_back(self, state: Tensors) -> str | None:
        """Return to the state of an earlier round within the open one, because no silo can train the last weights.

        Args:
            state: What ``state_dict`` returned after that earlier round.

        Returns:
            The silo that is left out of the next round, "" for none, or None where the server averages no updates and
            cannot go back.
        """
        if self.lengths is None:
            return None
        self.load_state_dict(state | add_prefix(self.lengths.state_dict(), LENGTHS))
        return self.lengths.leave_out_mover()

    @abstractmethod
    def state_dict(self) -> Tensors:
        """Return everything that is needed to go on after a closed round, except the round's number."""

    @abstractmethod
    def load_state_dict(self, state: Tensors) -> None:
        """Restore what ``state_dict`` returned. ``round`` is set before.

        Args:
            state: The tensors by name.
        """


class ServerWrapper(Server):
    """A server that answers some operations itself, and passes the others on.

    Args:
        inner: The server that answers everything else.
    """

    def __init__(self, inner: Server) -> None:
        self.inner = inner

    @property
    def round(self) -> int:
        """The round of the inner server."""
        return self.inner.round

    @round.setter  # noqa: A003 - the property above
    def round(self, number: int) -> None:
        self.inner.round = number

    def handle(self, silo: str, message: Message) -> Message:
        """Pass the message on."""
        return self.inner.handle(silo, message)

    def validate(self, silo: str, message: Message) -> None:
        """Pass the message on."""
        self.inner.validate(silo, message)

    def accumulate(self, silo: str, message: Message) -> Accumulated:
        """Pass the message on."""
        return self.inner.accumulate(silo, message)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Pass the messages on."""
        return self.inner.handle_barrier(op, messages)

    def go_back(self, state: Tensors) -> str | None:
        """Have the inner server go back; what this one holds is not what silos train."""
        return self.inner.go_back(self.inner_state(state))

    def inner_state(self, state: Tensors) -> Tensors:
        """Return the inner server's part of a state."""
        return state


ServerCall = Callable[["Message"], "Message"]
"""Sends a message to the server and returns the answer, or raises ``Refused``."""


class Method(Spec, ABC):
    """A way of training together: both halves of a conversation between silos and a server.

    A method is a frozen specification. Its fields are its hyper-parameters, and a recipe sets them. To write one, give
    it fields and three functions:

    * ``plan`` lists every operation, and what it may carry each way. Nothing that is not in the plan is ever sent.
    * ``silo`` is the silo's half: an ordinary training loop, written as a Python generator. ``answer = yield
      Message(...)`` sends a message and resumes with the answer.
    * ``server`` returns the server's half, a ``Server`` that answers these messages.

    Everything else has a default, and is overridden where a method needs it: ``check_silo``, ``silo_generator`` and
    ``generator_for`` for what images are drawn with, ``cost_lines``, ``costs``, ``upload_bytes`` and ``warnings`` for
    what users read before they start, ``hides`` and ``release_in`` where noise protects images.

    Set ``pools = True`` for a baseline that is given all images in one silo.
    """

    pools: ClassVar[bool] = False
    rounds: Int = Field(ge=1, le=1_000_000, description="The number of rounds of the run.")

    @abstractmethod
    def silo(self, silo: Silo) -> Conversation:
        """Return the silo's half: a generator that yields messages and receives the server's answers.

        Keep what must survive a restart in ``silo.memory``. Hold no context such as ``torch.no_grad`` or autocast over
        a ``yield``, because other silos run in between.

        Args:
            silo: The silo that trains: its images, its device, its memory and its random numbers.
        """

    @abstractmethod
    def server(self, seed: int, silos: Mapping[str, int]) -> Server:
        """Return the server's half, as it is at the start of a run.

        Args:
            seed: The seed of the run; all random numbers are drawn from it.
            silos: The number of images of each silo, by name.
        """

    @abstractmethod
    def plan(self) -> Plan:
        """Return every operation, with the tensors and facts that it may carry each way and what leaves the silo."""

    def cost_lines(self, silos: int, sampling: Sampling) -> list[str]:
        """Return sentences about traffic and cost, for whoever decides whether to run this.

        Args:
            silos: The number of silos.
            sampling: How images are drawn.
        """
        return []

    def upload_bytes(self, images: int) -> int:
        """Return about how many bytes a silo sends in a whole run: each operation once, or once a round.

        Args:
            images: The number of images of the silo.
        """
        operations = self.plan().operations.values()
        return sum(
            (self.rounds if operation.closes_round else 1) * operation.up.tensor_bytes for operation in operations
        )

    def warnings(self, roster: Mapping[str, int]) -> list[str]:
        """Return sentences that must be read before a run with these silos starts.

        Args:
            roster: The number of images of each silo, by name.
        """
        return []

    def costs(self, silo: str, images: int, sampling: Sampling) -> dict[str, float]:
        """Return what training and drawing cost a silo, where that differs from the cost of the whole network.

        Args:
            silo: The name of the silo.
            images: The number of its images.
            sampling: How images are drawn.
        """
        return {}

    @property
    def hides(self) -> bool:
        """Whether noise hides what is sent. Such noise must be drawn from a secret of the silo."""
        return False

    def release_in(self, silo: Silo, message: Message) -> Release | None:
        """Return which images a message releases with noise on them, or None where it releases none.

        Args:
            silo: The silo that sends it.
            message: What it sends.
        """
        return None

    def check_silo(self, silo: Silo) -> None:
        """Raise ``RecipeError`` where this method cannot work with the silo's images.

        Args:
            silo: The silo, before the run starts.
        """

    def silo_generator(self, silo: Silo) -> TrainedModel | None:
        """Return the generator that this silo keeps for itself, or None where it has none.

        Args:
            silo: The silo, with what it has in its memory.
        """
        return None

    def generator_for(
        self, silo: str, shared: TrainedModel | None, own: TrainedModel | None, ask: ServerCall
    ) -> TrainedModel | ImageGenerator | None:
        """Return what this silo draws images with: by default its own generator if it has one, else the shared one.

        Args:
            silo: The name of the silo.
            shared: The server's generator, if there is one.
            own: The generator that the silo keeps for itself, if there is one.
            ask: Sends a message to the server, for a method whose silos cannot draw without it.
        """
        return own or shared


def check_images(silo: Silo, model: Model, least: int = 1) -> None:
    """Raise ``RecipeError`` where a silo's images do not fit a model.

    Args:
        silo: The silo whose images are checked.
        model: The size, channels and classes that are expected.
        least: The fewest images that can be trained on.
    """
    images = silo.images
    if not len(images):
        raise RecipeError(f"{silo.name}: has no images")
    if len(images) < least:
        raise RecipeError(f"{silo.name}: has {len(images)} images, expected at least {least}")
    if tuple(images.pixels.shape[1:]) != (model.channels, model.size, model.size):
        shape = " x ".join(map(str, images.pixels.shape[1:]))
        raise RecipeError(f"{silo.name}: has images of {shape}, the model is for {model.channels} x {model.size}")
    if model.classes and images.labels is None:
        raise RecipeError(f"{silo.name}: has no labels; use a model with classes = 0")
    if model.classes and len(images.classes) != model.classes:
        raise RecipeError(f"{silo.name}: has {len(images.classes)} classes, the model is for {model.classes}")
