"""The kinds of things that leave a silo, and what can be computed from each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from manyhands.privacy.accountant import decibel, epsilon, mu_of

if TYPE_CHECKING:
    from manyhands.silos.training import Training

IMAGES, LABELS = "images", "labels"
DELTA = 1e-5
MAX_EPSILON = 10.0
"""A release of a larger epsilon gives its images away, unless the theory below can be computed on them."""
MAX_PICKED, CANDIDATES = 0.01, 1000
"""Where there are so many images to compute it on: a release by which a larger share of them is picked, in theory."""
NO_EPSILON = "no epsilon can be given"


def epsilon_text(spent: float) -> str:
    """An epsilon for people."""
    return f"{spent:,.0f}" if spent >= 1000 else f"{spent:.3g}"


class Picked(NamedTuple):
    """The share of releases for which, in theory, the right image is picked out of so many candidates."""

    share: float
    of: int


@dataclass(frozen=True, kw_only=True)
class OutgoingData(ABC):
    """One kind of thing that leaves a silo.

    ``silo`` is the one that it leaves; without one it leaves every silo ``but`` some. ``often`` says how often, in
    words; those of its operation, if not told.
    """

    rank: ClassVar[int]

    silo: str = ""
    except_silos: tuple[str, ...] = ()
    often: str = ""

    @property
    @abstractmethod
    def description(self) -> str:
        """What it is, in words."""

    @abstractmethod
    def computed(self, images: int | None = None) -> str:
        """What can be computed from it, in words, where a silo has so many images."""

    def guarantee(self, images: int | None = None) -> str:
        """What is proven of it, in words."""
        return NO_EPSILON

    def exposed(self, images: int | None = None) -> tuple[str, ...]:
        """Which of images and labels the server reads in it, or can compute from it."""
        return ()

    def gives_away(self, images: int | None = None, picked: Picked | None = None) -> str:
        """What must be said of it before anything else; nothing where images are not given away."""
        if IMAGES not in self.exposed(images):
            return ""
        return f"This run gives its images away. What leaves: {self.description}. From it: {self.computed(images)}."


@dataclass(frozen=True, kw_only=True)
class Images(OutgoingData):
    """Images as they are."""

    rank = 0

    @property
    def description(self) -> str:
        """See ``OutgoingData``."""
        return "its images, as they are"

    def computed(self, images: int | None = None) -> str:
        """See ``OutgoingData``."""
        return "nothing need be computed, the images are there"

    def exposed(self, images: int | None = None) -> tuple[str, ...]:
        """Images."""
        return (IMAGES,)


class Fresh(NamedTuple):
    """Images are released anew in each round, as often as they are trained on in it."""

    rounds: int
    training: Training

    def releases(self, images: int | None) -> int | None:
        """How often one of so many images is released at most; None where that is not known."""
        if images is None:
            return self.rounds * self.training.epochs if self.training.epochs else None
        return self.rounds * -(-self.training.seen(images) // max(images, 1))


@dataclass(frozen=True, kw_only=True)
class NoisedImages(OutgoingData):
    """Images with Gaussian noise: ``snr`` is the ratio of powers in one release, ``norm`` the largest of an image.

    Released once, always with the same noise, or as ``fresh`` says with new noise each time. ``squeezed``: images are
    squeezed into that norm. The epsilon in words is at ``delta``.
    """

    rank = 1

    snr: float
    norm: float
    fresh: Fresh | None = None
    squeezed: bool = False
    delta: float = DELTA

    @property
    def description(self) -> str:
        """Says the SNR of one release."""
        squeezed = f"squeezed into the norm {self.norm:g} and " if self.squeezed else ""
        return f"its images, {squeezed}noised to an SNR of {decibel(self.snr):.1f} dB"

    def computed(self, images: int | None = None) -> str:
        """Depends on whether there is more signal than noise, and on epsilon."""
        if self.exposed(images):
            about = "each image, more or less sharp, since it holds more signal than noise"
        elif self.epsilon(images) > MAX_EPSILON:
            about = "a rough picture of each image, and which of several images it is"
        else:
            about = "little"
        count = self.releases(images)
        if count is None:
            return f"{about}, and more with each release: n releases are as one at n times the SNR"
        return about if count == 1 else f"{about}; {count:,} releases are as one at {self.snr_db(images):.1f} dB"

    def guarantee(self, images: int | None = None) -> str:
        """Epsilon, its delta, and what it is about."""
        spent, one = self.epsilon(images, self.delta), self.releases(images) is None
        of = " of one release" if one else ""
        return f"epsilon {epsilon_text(spent)}{of} at delta {self.delta:g} (local, one image replaced by any other)"

    def exposed(self, images: int | None = None) -> tuple[str, ...]:
        """Images, where all releases of one together have more signal than noise."""
        return (IMAGES,) if self.snr_db(images) > 0 else ()

    def releases(self, images: int | None) -> int | None:
        """How often an image is released at most; None where that is not known."""
        return 1 if self.fresh is None else self.fresh.releases(images)

    def snr_db(self, images: int | None) -> float:
        """Of all releases of an image together."""
        return decibel(self.snr * (self.releases(images) or 1))

    def epsilon(self, images: int | None, delta: float = DELTA) -> float:
        """Of all releases of an image together."""
        return epsilon(mu_of(self.snr, self.norm, self.releases(images) or 1), delta)

    def gives_away(self, images: int | None = None, picked: Picked | None = None) -> str:
        """By theory on images of the kind, where there are enough of them; else by epsilon, which needs none.

        Images that are released anew, nobody knows how often, are so once a round at least.
        """
        known_count = self.releases(images)
        count = known_count or (self.fresh.rounds if self.fresh else 1)
        spent = epsilon(mu_of(self.snr, self.norm, count), DELTA)
        known = picked is not None and picked.of >= CANDIDATES
        if picked.share <= MAX_PICKED if known and picked else spent <= MAX_EPSILON:
            return ""
        proof = f"a value above {MAX_EPSILON:g} rules out next to nothing"
        if picked:
            who = f"somebody with {picked.of:,} candidates"
            proof = f"in theory, {who} picks the right one for {picked.share:.1%} of the releases"
        more = "" if known_count else " or more"
        together = f", {count:,}{more} releases of each together" if self.fresh and (count > 1 or more) else ""
        noised = f"they leave noised to an SNR of {decibel(self.snr * count):.1f} dB{together}"
        that = f"That is an epsilon of {epsilon_text(spent)} at delta {DELTA:g}"
        return f"This run gives its images away: {noised}. {that}; {proof}."


@dataclass(frozen=True, kw_only=True)
class Activations(OutgoingData):
    """The activations of the layers that ``by`` names, ``on`` something; ``known``: the server knows these layers.

    ``images`` and ``labels`` say which of the silo's own went in.
    """

    rank = 2

    by: str
    on: str
    known: bool = True
    images: bool = False
    labels: bool = False

    @property
    def description(self) -> str:
        """Says of which layers, and on what."""
        return f"the activations of {self.by} on {self.on}"

    def computed(self, images: int | None = None) -> str:
        """What went in, where the layers are known."""
        if not (found := " and ".join(self.exposed(images))):
            return "none of its images"
        return f"the server can compute its {found}, since it knows these layers"

    def exposed(self, images: int | None = None) -> tuple[str, ...]:
        """What went in."""
        told = {IMAGES: self.images, LABELS: self.labels}
        return tuple(name for name, went_in in told.items() if went_in and self.known)


@dataclass(frozen=True, kw_only=True)
class Gradients(OutgoingData):
    """Gradients of a loss with respect to something (``at``) that is no image of the silo."""

    rank = 3

    at: str

    @property
    def description(self) -> str:
        """Says with respect to what."""
        return f"gradients with respect to {self.at}"

    def computed(self, images: int | None = None) -> str:
        """See ``OutgoingData``."""
        return "how its network, trained on its images, rates its input; no attack from there to an image is known here"


@dataclass(frozen=True, kw_only=True)
class Labels(OutgoingData):
    """Labels of images; with the epsilon of randomised response, if they are ``randomised``."""

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
        """That of randomised response."""
        if self.randomised is None:
            return NO_EPSILON
        return f"epsilon {self.randomised:g} of its own (randomised response), beside that of images"

    def exposed(self, images: int | None = None) -> tuple[str, ...]:
        """Labels, where they are the true ones."""
        return (LABELS,) if self.randomised is None else ()


@dataclass(frozen=True, kw_only=True)
class Weights(OutgoingData):
    """Weights ``of`` a network that learnt from the silo's images by ``training``, ``readable`` to the server.

    ``kept`` are the parts of it that stay.
    """

    rank = 5

    of: str
    training: Training | None = None
    readable: bool = True
    kept: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """Says of which network, and whether the server can read them."""
        how = "which the server can read" if self.readable else "which the server cannot read"
        return f"the weights of {self.of}, {how}"

    def computed(self, images: int | None = None) -> str:
        """See ``OutgoingData``."""
        if not self.readable:
            return "nothing from those of one silo; from the mean of all silos, what that has learnt"
        if self.exposed(images):
            return "at least some of its images: after a single step the weights tell the gradient"
        return "images like its own, those that it has memorised, and with errors whether an image was trained on"

    def exposed(self, images: int | None = None) -> tuple[str, ...]:
        """Images, where a round is a single step."""
        if self.training is None or not self.readable:
            return ()
        count = self.training.steps if images is None else self.training.iterations(images)
        return (IMAGES,) if count == 1 else ()


@dataclass(frozen=True, kw_only=True)
class GeneratedImages(OutgoingData):
    """Images that a generator of the silo draws, and whom they go ``to``."""

    rank = 6

    to: str

    @property
    def description(self) -> str:
        """Says who gets them."""
        return f"images that its generator draws, for {self.to}"

    def computed(self, images: int | None = None) -> str:
        """See ``OutgoingData``."""
        return "images like its own, and those that the generator has memorised"


@dataclass(frozen=True, kw_only=True)
class Statistics(OutgoingData):
    """Numbers about the silo, its images or its training."""

    rank = 7

    of: tuple[str, ...]

    @property
    def description(self) -> str:
        """See ``OutgoingData``."""
        return ", ".join(self.of)

    def computed(self, images: int | None = None) -> str:
        """See ``OutgoingData``."""
        return "no image"
