"""The kinds of data that leave a silo, and what can be computed from each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from manyhands.formatting import number_text
from manyhands.privacy.accountant import decibel, epsilon, mu_of

if TYPE_CHECKING:
    from manyhands.silos.training import Training

IMAGES, LABELS = "images", "labels"
DELTA = 1e-5
MAX_EPSILON = 10.0
"""A release with a larger epsilon gives its images away, unless the share of ``Picked`` is known: it decides then."""
MAX_PICKED, CANDIDATES = 0.01, 1000
"""A release gives its images away if a larger share of them is picked out of at least ``CANDIDATES`` candidates."""
NO_EPSILON = "none (no differential privacy)"


class Picked(NamedTuple):
    """The theoretical share of releases whose image an attacker picks out of a number of candidates.

    Args:
        share: The share, from 0 to 1.
        of: The number of candidates.
    """

    share: float
    of: int


@dataclass(frozen=True, kw_only=True)
class OutgoingData(ABC):
    """One kind of data that leaves a silo.

    Args:
        silo: The silo that it leaves; "" for every silo except ``except_silos``.
        except_silos: The silos that it does not leave.
        often: How often, in words; "" for the words of its operation.
    """

    rank: ClassVar[int]

    silo: str = ""
    except_silos: tuple[str, ...] = ()
    often: str = ""

    @property
    @abstractmethod
    def description(self) -> str:
        """Describe the data in words."""

    @abstractmethod
    def computed(self, images: int | None = None) -> str:
        """Describe what can be computed from it, for a silo with this number of images, if known."""

    def guarantee(self, images: int | None = None) -> str:
        """Describe its proven privacy guarantee."""
        return NO_EPSILON

    def exposed(self, images: int | None = None) -> tuple[str, ...]:
        """Which of images and labels the server receives, or can compute from what it receives."""
        return ()

    def gives_away(self, images: int | None = None, picked: Picked | None = None) -> str:
        """The warning that images are given away, or "" if they are not.

        Args:
            images: The number of images of the silo, if known.
            picked: The theoretical success of an attack, if known.
        """
        if IMAGES not in self.exposed(images):
            return ""
        return f"This run gives its images away. What leaves: {self.description}. From it: {self.computed(images)}."


@dataclass(frozen=True, kw_only=True)
class Images(OutgoingData):
    """Images without noise."""

    rank = 0

    @property
    def description(self) -> str:
        """See ``OutgoingData``."""
        return "its images, as they are"

    def computed(self, images: int | None = None) -> str:
        """See ``OutgoingData``."""
        return "nothing has to be computed, the images are there"

    def exposed(self, images: int | None = None) -> tuple[str, ...]:
        """Images."""
        return (IMAGES,)


class Fresh(NamedTuple):
    """Images are released with new noise in each round, as often as they are trained on.

    Args:
        rounds: The number of rounds.
        training: The training of one round.
    """

    rounds: int
    training: Training

    def releases(self, images: int | None) -> int | None:
        """The most releases of an image, of a silo with this number of images; None if that is not known."""
        if images is None:
            return self.rounds * self.training.epochs if self.training.epochs else None
        return self.rounds * -(-self.training.seen(images) // max(images, 1))


@dataclass(frozen=True, kw_only=True)
class NoisedImages(OutgoingData):
    """Images with Gaussian noise.

    Args:
        snr: The signal-to-noise ratio of one release, as a ratio of powers.
        norm: The largest norm of an image.
        fresh: How often images are released with new noise; ``None`` if each is released once.
        squeezed: Whether images are scaled down to that norm.
        delta: The delta of the epsilon in words.
    """

    rank = 1

    snr: float
    norm: float
    fresh: Fresh | None = None
    squeezed: bool = False
    delta: float = DELTA

    @property
    def description(self) -> str:
        """See ``OutgoingData``; it names the SNR of one release."""
        squeezed = f"squeezed into the norm {self.norm:g} and " if self.squeezed else ""
        return f"its images, {squeezed}noised to an SNR of {decibel(self.snr):.1f} dB"

    def computed(self, images: int | None = None) -> str:
        """See ``OutgoingData``; it depends on whether there is more signal than noise, and on epsilon."""
        if self.exposed(images):
            result = "each image, more or less sharp, because the release contains more signal than noise"
        elif self.epsilon(images) > MAX_EPSILON:
            result = "a rough picture of each image, and which of several images it is"
        else:
            result = "little"
        count = self.releases(images)
        if count is None:
            return f"{result}, and more with each release: n releases are as one at n times the SNR"
        return result if count == 1 else f"{result}; {count:,} releases are as one at {self.snr_db(images):.1f} dB"

    def guarantee(self, images: int | None = None) -> str:
        """See ``OutgoingData``: epsilon, its delta, and what it protects."""
        epsilon, unknown = self.epsilon(images, self.delta), self.releases(images) is None
        of = " of one release" if unknown else ""
        return f"epsilon {number_text(epsilon)}{of} at delta {self.delta:g} (local, one image replaced by any other)"

    def exposed(self, images: int | None = None) -> tuple[str, ...]:
        """Images, if all releases of one together have more signal than noise."""
        return (IMAGES,) if self.snr_db(images) > 0 else ()

    def releases(self, images: int | None) -> int | None:
        """The most releases of an image; None if that is not known."""
        return 1 if self.fresh is None else self.fresh.releases(images)

    def snr_db(self, images: int | None) -> float:
        """The SNR of all releases of an image together, in dB."""
        return decibel(self.snr * (self.releases(images) or 1))

    def epsilon(self, images: int | None, delta: float = DELTA) -> float:
        """The epsilon of all releases of an image together."""
        return epsilon(mu_of(self.snr, self.norm, self.releases(images) or 1), delta)

    def gives_away(self, images: int | None = None, picked: Picked | None = None) -> str:
        """See ``OutgoingData``; ``picked`` decides if it is of enough candidates, else epsilon.

        If it is not known how often images are released, the warning counts one release a round, the least.
        """
        known_count = self.releases(images)
        count = known_count or (self.fresh.rounds if self.fresh else 1)
        total = epsilon(mu_of(self.snr, self.norm, count), DELTA)
        known = picked is not None and picked.of >= CANDIDATES
        if picked.share <= MAX_PICKED if known and picked else total <= MAX_EPSILON:
            return ""
        proof = f"a value above {MAX_EPSILON:g} rules out next to nothing"
        if picked:
            who = f"somebody with {picked.of:,} candidates"
            proof = f"in theory, {who} picks the right one for {picked.share:.1%} of the releases"
        more = "" if known_count else " or more"
        together = f", {count:,}{more} releases of each together" if self.fresh and (count > 1 or more) else ""
        noised = f"they leave noised to an SNR of {decibel(self.snr * count):.1f} dB{together}"
        that = f"That is an epsilon of {number_text(total)} at delta {DELTA:g}"
        return f"This run gives its images away: {noised}. {that}; {proof}."


@dataclass(frozen=True, kw_only=True)
class Activations(OutgoingData):
    """Activations of some layers.

    Args:
        by: The layers, in words.
        on: Their input, in words.
        known: Whether the server knows the weights of these layers.
        images: Whether the silo's images are in the input.
        labels: Whether the silo's labels are in the input.
    """

    rank = 2

    by: str
    on: str
    known: bool = True
    images: bool = False
    labels: bool = False

    @property
    def description(self) -> str:
        """See ``OutgoingData``; it names the layers and their input."""
        return f"the activations of {self.by} on {self.on}"

    def computed(self, images: int | None = None) -> str:
        """See ``OutgoingData``: the input, if the layers are known."""
        if not (inputs := " and ".join(self.exposed(images))):
            return "none of its images"
        return f"the server can compute its {inputs}, since it knows these layers"

    def exposed(self, images: int | None = None) -> tuple[str, ...]:
        """The input, if the layers are known."""
        inputs = {IMAGES: self.images, LABELS: self.labels}
        return tuple(name for name, went_in in inputs.items() if went_in and self.known)


@dataclass(frozen=True, kw_only=True)
class Gradients(OutgoingData):
    """Gradients of a loss with respect to something that is not an image of the silo.

    Args:
        at: What they are with respect to, in words.
    """

    rank = 3

    at: str

    @property
    def description(self) -> str:
        """See ``OutgoingData``; it names what they are with respect to."""
        return f"gradients with respect to {self.at}"

    def computed(self, images: int | None = None) -> str:
        """See ``OutgoingData``."""
        return "how its network, trained on its images, rates its input; no attack that recovers an image is known"


@dataclass(frozen=True, kw_only=True)
class Labels(OutgoingData):
    """Labels of images.

    Args:
        randomised: The epsilon of randomised response; ``None`` for the true labels.
    """

    rank = 4

    randomised: float | None = None

    @property
    def description(self) -> str:
        """See ``OutgoingData``."""
        return "its labels" if self.randomised is None else "its labels, some of them replaced at random"

    def computed(self, images: int | None = None) -> str:
        """See ``OutgoingData``."""
        return "the class of each image" if self.randomised is None else "the class of each image, with errors"

    def guarantee(self, images: int | None = None) -> str:
        """See ``OutgoingData``: the guarantee of randomised response."""
        if self.randomised is None:
            return NO_EPSILON
        return f"epsilon {self.randomised:g} of its own (randomised response), besides that of images"

    def exposed(self, images: int | None = None) -> tuple[str, ...]:
        """Labels, if they are the true ones."""
        return (LABELS,) if self.randomised is None else ()


@dataclass(frozen=True, kw_only=True)
class Weights(OutgoingData):
    """Weights of a network that was trained on the silo's images.

    Args:
        of: The network, in words.
        training: The training of one round; ``None`` if it is not known.
        readable: Whether the server can read them, and not only their sum over silos.
        kept: The parts of the network that stay in the silo.
    """

    rank = 5

    of: str
    training: Training | None = None
    readable: bool = True
    kept: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """See ``OutgoingData``; it names the network and says whether the server can read the weights."""
        how = "which the server can read" if self.readable else "which the server cannot read"
        return f"the weights of {self.of}, {how}"

    def computed(self, images: int | None = None) -> str:
        """See ``OutgoingData``."""
        if not self.readable:
            return "nothing from those of one silo; from the mean of all silos, what the mean has learnt"
        if self.exposed(images):
            return "at least some of its images: after a single step the weights reveal the gradient"
        return "similar images, images that it memorised, and a guess whether an image was in the training set"

    def exposed(self, images: int | None = None) -> tuple[str, ...]:
        """Images, if a round is a single step."""
        if self.training is None or not self.readable:
            return ()
        count = self.training.steps if images is None else self.training.iterations(images)
        return (IMAGES,) if count == 1 else ()


@dataclass(frozen=True, kw_only=True)
class GeneratedImages(OutgoingData):
    """Images that the silo's generator samples.

    Args:
        to: Who receives them, in words.
    """

    rank = 6

    to: str

    @property
    def description(self) -> str:
        """See ``OutgoingData``; it names who receives them."""
        return f"images that its generator draws, for {self.to}"

    def computed(self, images: int | None = None) -> str:
        """See ``OutgoingData``."""
        return "images like its own, and those that the generator has memorised"


@dataclass(frozen=True, kw_only=True)
class Statistics(OutgoingData):
    """Numbers about the silo, its images or its training.

    Args:
        of: What each of them is, in words.
    """

    rank = 7

    of: tuple[str, ...]

    @property
    def description(self) -> str:
        """See ``OutgoingData``."""
        return ", ".join(self.of)

    def computed(self, images: int | None = None) -> str:
        """See ``OutgoingData``."""
        return "no image"
