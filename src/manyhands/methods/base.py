"""The base class of a method of collaboration: a specification with both halves of a conversation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field

from manyhands.errors import RecipeError
from manyhands.formatting import names_text
from manyhands.registry import METHODS, OneOf
from manyhands.spec import Int, Spec, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from manyhands.diffusion.sampling import Sampling
    from manyhands.generators.base import ImageGenerator
    from manyhands.generators.load import TrainedModel
    from manyhands.messages.message import Message
    from manyhands.messages.plan import Plan
    from manyhands.methods.server import Server
    from manyhands.models.base import Model
    from manyhands.silos.silo import Silo

WEIGHTS, AVERAGE = "weights.", "average."
"""The prefixes of a network's weights and of their average over rounds, in a silo's memory and a server's state."""

Conversation = Generator["Message", "Message", None]
"""A silo's half of a method: it yields the messages that it sends, and receives the answers."""


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

    Everything else has a default, and is overridden where a method needs it: ``check_silo`` and
    ``check_partition`` for what it cannot be used on, ``silo_generator`` and ``generator_for`` for what images are
    sampled with, ``cost_lines``, ``costs``, ``upload_bytes`` and ``warnings`` for what users read before they start,
    ``needs_secret`` and ``release_in`` where noise protects images.

    Set ``pools_images = True`` for a baseline that is given all images in one silo.
    """

    pools_images: ClassVar[bool] = False
    rounds: Int = Field(ge=1, le=1_000_000, description="The number of rounds of the run.")

    if TYPE_CHECKING:  # a field of each class

        @property
        def kind(self) -> str:
            """The name of its kind in a recipe."""
            ...

    @abstractmethod
    def silo(self, silo: Silo) -> Conversation:
        """Return the silo's half: a generator that yields messages and receives the server's answers.

        What must survive a restart is kept with ``silo.memory.keep``, before the message that closes the round is
        yielded; nothing else survives it. A refusal is raised at the ``yield`` as ``Refused``: a silo that handles it
        yields inside ``with silo.memory.transaction()``, which undoes what was kept for the refused message. Hold no
        context such as ``torch.no_grad`` or autocast over a ``yield``, because other silos run in between; a
        transaction concerns this silo alone.

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

    @property
    def image_model(self) -> Model | None:
        """The field ``model``, for whose images the method is; None for a method without one."""
        return getattr(self, "model", None)

    @property
    def takes_guidance(self) -> bool:
        """Whether its network is also trained without labels, so that samples can be guided."""
        return False

    def progress(self, number: int) -> float:
        """Return how far the run is at the start of a round: 0 in the first round, 1 in the last."""
        return number / max(self.rounds - 1, 1)

    def silos_per_round(self, silos: int) -> int:
        """Return how many of so many silos take part in a round."""
        return silos

    def check_partition(self, silos: Sequence[str]) -> None:
        """Raise ``ValueError`` where this method cannot work with the silos of a recipe.

        Args:
            silos: The names of the silos.
        """

    def cost_lines(self, silos: int, sampling: Sampling) -> list[str]:
        """Return sentences about traffic and cost, for whoever decides whether to run this.

        Args:
            silos: The number of silos.
            sampling: How images are sampled.
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
        """Return what training and sampling cost a silo, where that differs from the cost of the whole network.

        Args:
            silo: The name of the silo.
            images: The number of its images.
            sampling: How images are sampled.
        """
        return {}

    @property
    def needs_secret(self) -> bool:
        """Whether silos add noise to what they send. Such noise must be drawn from a secret of the silo."""
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
        """Return what this silo generates images with: by default its own generator if it has one, else the shared one.

        Args:
            silo: The name of the silo.
            shared: The server's generator, if there is one.
            own: The generator that the silo keeps for itself, if there is one.
            ask: Sends a message to the server, for a method whose silos cannot generate images without it.
        """
        return own or shared


def plan_of(method: Method) -> Plan:
    """Return the plan of a method, or raise ``RecipeError`` where the method returns something else.

    Args:
        method: The method.
    """
    from manyhands.messages.plan import Plan

    plan: object = method.plan()
    if not isinstance(plan, Plan):
        raise RecipeError(f"{type(method).__name__}.plan() returns a value of type {type(plan).__name__}, not a Plan")
    return plan


AnyMethod = Annotated[Method, OneOf(METHODS)]


def check_names(named: Iterable[str], silos: Sequence[str]) -> None:
    """Raise ``ValueError`` for the first name in a method's fields that is the name of no silo."""
    known = set(silos)
    if unknown := next((name for name in named if name not in known), None):
        raise ValueError(f"method names {unknown!r}; {suggest(unknown, list(silos[:20]))}")


def check_cuts(unknown: Collection[str], silos: Collection[str]) -> None:
    """Raise ``RecipeError`` if there are names in a method's ``cuts`` that are the name of no silo."""
    if unknown:
        name = next(iter(unknown))
        raise RecipeError(f"cuts names {name!r}, which is none of the silos ({names_text(sorted(silos))})")


def check_images(silo: Silo, model: Model, min_images: int = 1) -> None:
    """Raise ``RecipeError`` where a silo's images do not fit a model.

    Args:
        silo: The silo whose images are checked.
        model: The size, channels and classes that are expected.
        min_images: The fewest images that can be trained on.
    """
    images = silo.images
    if not len(images):
        raise RecipeError(
            f"{silo.name}: has no images; a partition with fewer silos, or a larger alpha of 'dirichlet', gives it some"
        )
    if len(images) < min_images:
        raise RecipeError(f"{silo.name}: has {len(images)} images, expected at least {min_images}")
    if tuple(images.shape[1:]) != (model.channels, model.size, model.size):
        shape = " x ".join(map(str, images.shape[1:]))
        raise RecipeError(f"{silo.name}: has images of {shape}, the model is for {model.channels} x {model.size}")
    if model.classes and images.labels is None:
        raise RecipeError(f"{silo.name}: has no labels; use a model with classes = 0")
    if model.classes and len(images.classes) != model.classes:
        raise RecipeError(f"{silo.name}: has {len(images.classes)} classes, the model is for {model.classes}")
