"""A release: images that are noised up to a silo's cut and sent to the server, and how the server stores them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manyhands.data.images import as_floats
from manyhands.data.occurrences import occurrences
from manyhands.diffusion.norm_bound import squeezing
from manyhands.diffusion.objective import noised
from manyhands.diffusion.release_privacy import box_norm
from manyhands.errors import Reason, Refused
from manyhands.messages.message import Message
from manyhands.privacy.noise import path_noise, randomise_label
from manyhands.tensors import Tensors, per_image

if TYPE_CHECKING:
    from manyhands.data.images import Images
    from manyhands.diffusion.schedule import Schedule

Labels = Literal["withhold", "share", "randomised"]
MESSAGE_BYTES = 4_000_000
"""About how many bytes of images are in one message."""
MAX_PIXEL = 50.0
"""The server refuses an image with a pixel that is further from 0; noise never takes one that far."""


@dataclass(frozen=True)
class Noising:
    """How a silo noises its images for a release.

    The noise of an image is drawn from the silo's secret and from the image's record: its pixels, and which of several
    equal images it is. Without the secret nobody can draw it, and equal images get different noise. All releases of an
    image lie on one path of noise: two releases with the same ratio of noise to image are equal, whatever the recipe
    says, and of two with different ratios the noisier one says nothing new (but for the norm of the image, where both
    squeeze it differently). With ``fresh``, each place of each round has a path of its own.

    Args:
        schedule: The noise schedule of the chain.
        cut: The step up to which images are noised.
        secret: The secret that the noise is drawn from.
        norm: The largest L2 norm of an image before noise; None for no bound.
        labels: Whether labels are withheld, shared or randomised.
        label_epsilon: The epsilon of randomised response for one label.
        turn: The round of the release; 0 for a single one.
        fresh: Whether each release gets new noise.
        held_out: The images that the silo holds out; equal images are counted among these, too.
    """

    schedule: Schedule
    cut: int
    secret: str = field(repr=False)
    _: KW_ONLY
    norm: float | None = None
    labels: Labels = "withhold"
    label_epsilon: float = 1.0
    turn: int = 0
    fresh: bool = False
    held_out: Images | None = field(default=None, repr=False)

    def release(self, images: Images, numbers: Tensor, first: int = 0) -> Tensors:
        """Return the noised images, of shape (B, C, H, W), and their labels, of shape (B,), if those are sent.

        Args:
            images: The images of the silo.
            numbers: The numbers of the images to release, of shape (B,).
            first: The place of the first of them in the whole release.
        """
        pixels, which = images.read(numbers), occurrences(images, self.held_out)
        records = [self._record(image, int(which[i])) for image, i in zip(pixels, numbers, strict=True)]
        released = {"images": self._noised(pixels, records, first)}
        if self.labels == "withhold" or images.labels is None:
            return released
        labels, classes = images.labels[numbers].tolist(), len(images.classes)
        sent = [self._sent_label(record, label, classes) for record, label in zip(records, labels, strict=True)]
        return released | {"labels": torch.tensor(sent)}

    def paths(self, images: Images, numbers: Tensor, first: int = 0) -> list[bytes]:
        """Return, for each image, a hash that names the path of its noise and its scale without giving away either."""
        pixels, which = images.read(numbers), occurrences(images, self.held_out)
        factors = shrinking(pixels, self.norm).flatten().tolist()
        records = [self._record(image, int(which[i])) for image, i in zip(pixels, numbers, strict=True)]
        pairs = enumerate(zip(records, factors, strict=True))
        keys = [f"path {factor.hex()}\n".encode() + self._key(record, first + i) for i, (record, factor) in pairs]
        return [hashlib.sha256(key).digest() for key in keys]

    def label_paths(self, images: Images, numbers: Tensor) -> tuple[bytes, ...]:
        """Return, for each image, a hash that names the randomness of its randomised label."""
        if self.labels != "randomised" or images.labels is None:
            return ()
        which, classes = occurrences(images, self.held_out), len(images.classes)
        keys = [
            self._label_key(self._record(image, int(which[i])), int(images.labels[i]), classes)
            for image, i in zip(images.read(numbers), numbers.tolist(), strict=True)
        ]
        return tuple(hashlib.sha256(b"path " + key).digest() for key in keys)

    def _noised(self, pixels: Tensor, records: list[bytes], first: int) -> Tensor:
        """Return the images with their noise, computed in float64 so that both are exact to the last digit.

        If noise were only nearly the same in two releases, their difference would give the image away.
        """
        x_0, factor = as_floats(pixels), shrinking(pixels, self.norm)
        if not self.cut:
            return (x_0.double() * factor).float()
        alpha, sigma = (level.double() for level in self.schedule.levels(torch.tensor([self.cut]), x_0))
        signal = alpha * factor
        variances = (sigma / signal).square().flatten().tolist()
        keys = [self._key(record, first + i) for i, record in enumerate(records)]
        eps = [path_noise(key, variance, x_0[0].numel()) for key, variance in zip(keys, variances, strict=True)]
        return noised(x_0.double(), torch.from_numpy(np.stack(eps)).reshape(x_0.shape), signal, sigma).float()

    def _key(self, record: bytes, place: int) -> bytes:
        anew = f"{self.turn} {place}" if self.fresh else ""
        return f"noise\n{anew}\n".encode() + record

    def _sent_label(self, record: bytes, label: int, classes: int) -> int:
        """Return the label that is sent; a randomised one is the same each time, or averaging would give it away."""
        if self.labels == "share":
            return label
        return randomise_label(self._label_key(record, label, classes), label, classes, self.label_epsilon)

    def _label_key(self, record: bytes, label: int, classes: int) -> bytes:
        return f"label\n{label} {classes}\n".encode() + record

    def _record(self, image: Tensor, which: int) -> bytes:
        return hashlib.sha256(f"{self.secret}\n{which}\n".encode() + image.numpy().tobytes()).digest()


def shrinking(pixels: Tensor, norm: float | None) -> Tensor:
    """Return the factor that squeezes each image into the norm, of shape (B, 1, 1, 1).

    Each factor is computed by itself, because the last digit of a power depends on how many are computed at once.

    Args:
        pixels: The images as bytes, of shape (B, C, H, W).
        norm: The largest norm; None for no bound.
    """
    own = pixels.flatten(1).long().mul(2).sub(255).square().sum(1).double().sqrt() / 255
    factors = [squeezing(single, norm, box_norm(pixels[0].numel())) for single in own.split(1)]
    return per_image(torch.cat(factors), pixels)


def images_per_message(pixels: int) -> int:
    """Return how many images of this many numbers go into one message."""
    return max(1, MESSAGE_BYTES // (4 * pixels))


def release_messages(noising: Noising, images: Images, numbers: Tensor, first: int = 0) -> Iterator[Message]:
    """Yield the messages of a release, from its image ``first`` on.

    Args:
        noising: How the images are noised.
        images: The images of the silo.
        numbers: The numbers of the images of the whole release, in order.
        first: How many of them the server has already.
    """
    size = images_per_message(math.prod(images.shape[1:]))
    for start in range(first, len(numbers), size):
        facts = {"first": start, "cut": noising.cut, "turn": noising.turn}
        yield Message("release", noising.release(images, numbers[start : start + size], start), facts)


def release_hash(noising: Noising, images: Images, numbers: Tensor) -> str:
    """Return the SHA-256 of all tensors of a release."""
    digest = hashlib.sha256()
    for message in release_messages(noising, images, numbers):
        for name in sorted(message.tensors):
            digest.update(message.tensors[name].numpy().tobytes())
    return digest.hexdigest()


class ReleasedImages(NamedTuple):
    """The released images that the server trains on.

    Args:
        images: The noised images, of shape (B, C, H, W).
        cuts: The step of the cut of each, of shape (B,).
        labels: Their labels, of shape (B,), or None where none were sent.
    """

    images: Tensor
    cuts: Tensor
    labels: Tensor | None


class Store:
    """The images of one silo's release that the server has.

    Args:
        cut: The step of the silo's cut.
        enrolled: How many images the whole release has.
        turn: The round of the release; 0 for a single one.
    """

    def __init__(self, cut: int, enrolled: int, turn: int = 0) -> None:
        self.cut, self.enrolled, self.turn = cut, enrolled, turn
        self.parts: list[Tensors] = []
        self.count = 0

    @property
    def whole(self) -> bool:
        """Whether the whole release is there."""
        return self.count == self.enrolled

    def check(self, message: Message, classes: int) -> None:
        """Raise ``Refused`` for a message that is not the next part of this release."""
        first, cut, turn = (message.facts[name] for name in ("first", "cut", "turn"))
        images, labels = message.tensors["images"], message.tensors.get("labels")
        if cut != self.cut:
            raise Refused(
                Reason.OTHER_CUT, f"images noised to step {cut} came, expected step {self.cut}, the cut of this silo"
            )
        if turn == self.turn and first < self.count:
            raise Refused(Reason.RELEASED, f"images from number {first} on came before; the server holds {self.count}")
        if turn != self.turn or first > self.count or not 0 < len(images) <= self.enrolled - first:
            raise Refused(
                Reason.OUT_OF_SEQUENCE,
                f"{len(images)} images from number {first} on came, expected those from number {self.count} on",
            )
        if float(images.abs().max()) > MAX_PIXEL:
            raise Refused(Reason.NOT_FINITE, f"a pixel lies beyond {MAX_PIXEL:g}")
        if labels is not None and (len(labels) != len(images) or not bool(((labels >= 0) & (labels < classes)).all())):
            raise Refused(Reason.WRONG_FACTS, f"expected one label for each image, from 0 to {classes - 1}")

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Store a part of the release."""
        self.parts.append(dict(tensors))
        self.count += len(tensors["images"])

    def tensors(self) -> Tensors:
        """Return all parts as one."""
        if len(self.parts) > 1:
            self.parts = [{name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}]
        return self.parts[0] if self.parts else {}

    def labels(self) -> set[int]:
        """Return the labels that the silo has sent."""
        return {label for part in self.parts if "labels" in part for label in part["labels"].unique().tolist()}


def joined(stores: list[Store], device: torch.device) -> ReleasedImages:
    """Return all that silos have released as one batch on a device."""
    releases = [store.tensors() for store in stores]
    cuts = torch.cat([torch.full((store.count,), store.cut) for store in stores])
    labels = torch.cat([release["labels"] for release in releases]) if "labels" in releases[0] else None
    images = torch.cat([release["images"] for release in releases])
    return ReleasedImages(images.to(device), cuts.to(device), None if labels is None else labels.to(device))
