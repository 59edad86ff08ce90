"""What a silo gives away for good: its images, noised up to its cut, once; and how the server keeps that."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manyhands.data.images import as_floats, occurrences
from manyhands.diffusion.objective import noised
from manyhands.diffusion.release import box_norm
from manyhands.diffusion.squeeze import shaped, squeezing
from manyhands.errors import Reason, Refused
from manyhands.messages.message import Message
from manyhands.privacy.noise import path_noise, randomise_label
from manyhands.tensors import Tensors

if TYPE_CHECKING:
    from manyhands.data.images import Images
    from manyhands.diffusion.schedule import Schedule

Labels = Literal["withhold", "share", "randomised"]
CHUNK = 4_000_000
"""About how many bytes of images are in one message."""
FARTHEST = 50.0
"""No noised image has a number as far from 0."""


@dataclass(frozen=True)
class Noising:
    """How a silo makes its release: the step of the cut, the norm of images at most, what becomes of labels.

    The noise of an image is drawn from ``secret`` and the record that it is: its pixels, and which of the silo's equal
    images, ``held_out`` ones among them. Whoever has not the secret cannot draw it, and equal images share none. How
    a recipe puts it is of no account: only how loud the noise is, against the image as it was squeezed. Of two cuts,
    chains or norms under which that is the same, the releases are the same; else they are of one path of noise, and
    tell together what the less noisy one tells (and, if norms differ that squeeze an image, its norm). Where images are
    released ``fresh``, each place of each ``turn`` has a path of its own.
    """

    schedule: Schedule
    cut: int
    secret: str = field(repr=False)
    norm: float | None = None
    labels: Labels = "withhold"
    label_epsilon: float = 1.0
    turn: int = 0
    fresh: bool = False
    held_out: Images | None = field(default=None, repr=False)

    def of(self, images: Images, numbers: Tensor, first: int = 0) -> Tensors:
        """The release of the images of these numbers, the first of which has this place in the whole of it."""
        pixels, which = images.pixels[numbers], occurrences(images, self.held_out)
        records = [self._record(image, int(which[i])) for image, i in zip(pixels, numbers, strict=True)]
        released = {"images": self._noised(pixels, records, first)}
        if self.labels == "withhold" or images.labels is None:
            return released
        known, classes = images.labels[numbers].tolist(), len(images.classes)
        told = [self._told(record, label, classes) for record, label in zip(records, known, strict=True)]
        return released | {"labels": torch.tensor(told)}

    def paths(self, images: Images, numbers: Tensor, first: int = 0) -> list[bytes]:
        """Of each image: a name for the path of its noise and for what it is scaled by, that tells neither."""
        pixels, which = images.pixels[numbers], occurrences(images, self.held_out)
        factors = shrinking(pixels, self.norm).flatten().tolist()
        records = [self._record(image, int(which[i])) for image, i in zip(pixels, numbers, strict=True)]
        named = zip(records, factors, strict=True)
        keys = [
            f"path {factor.hex()}\n".encode() + self._key(each, first + i) for i, (each, factor) in enumerate(named)
        ]
        return [hashlib.sha256(key).digest() for key in keys]

    def label_paths(self, images: Images, numbers: Tensor) -> tuple[bytes, ...]:
        """Of each image: a name for what its label at random is drawn from, which is another where classes are."""
        if self.labels != "randomised" or images.labels is None:
            return ()
        which, classes = occurrences(images, self.held_out), len(images.classes)
        keys = [
            self._label_key(self._record(images.pixels[i], int(which[i])), int(images.labels[i]), classes)
            for i in numbers.tolist()
        ]
        return tuple(hashlib.sha256(b"path " + key).digest() for key in keys)

    def _noised(self, pixels: Tensor, records: list[bytes], first: int) -> Tensor:
        """Images with noise of the variance that it has against the image itself, to the last digit of both.

        Were it only nearly so, the difference of two releases with the same noise would tell the image.
        """
        x_0, factor = as_floats(pixels), shrinking(pixels, self.norm)
        if not self.cut:
            return (x_0.double() * factor).float()
        alpha, sigma = (level.double() for level in self.schedule.levels(torch.tensor([self.cut]), x_0))
        signal = alpha * factor
        variances = (sigma / signal).square().flatten().tolist()
        keys = [self._key(record, first + i) for i, record in enumerate(records)]
        eps = [path_noise(*each, x_0[0].numel()) for each in zip(keys, variances, strict=True)]
        return noised(x_0.double(), torch.from_numpy(np.stack(eps)).reshape(x_0.shape), signal, sigma).float()

    def _key(self, record: bytes, place: int) -> bytes:
        anew = f"{self.turn} {place}" if self.fresh else ""
        return f"noise\n{anew}\n".encode() + record

    def _told(self, record: bytes, label: int, classes: int) -> int:
        """The label, or what is told of it: the same each time, or averaging would tell the true one."""
        if self.labels == "share":
            return label
        return randomise_label(self._label_key(record, label, classes), label, classes, self.label_epsilon)

    def _label_key(self, record: bytes, label: int, classes: int) -> bytes:
        return f"label\n{label} {classes}\n".encode() + record

    def _record(self, image: Tensor, which: int) -> bytes:
        told = f"{self.secret}\n{which}\n".encode() + image.numpy().tobytes()
        return hashlib.sha256(told).digest()


def shrinking(pixels: Tensor, norm: float | None) -> Tensor:
    """What images (bytes) are multiplied by to be squeezed into this norm, each for itself.

    The last digit of a power depends on how many are taken at once.
    """
    own = pixels.flatten(1).long().mul(2).sub(255).square().sum(1).double().sqrt() / 255
    each = [squeezing(one, norm, box_norm(pixels[0].numel())) for one in own.split(1)]
    return shaped(torch.cat(each), pixels.double())


def chunk_of(pixels: int) -> int:
    """How many images of so many numbers go into one message."""
    return max(1, CHUNK // (4 * pixels))


def chunks(noising: Noising, images: Images, numbers: Tensor, first: int = 0) -> Iterator[Message]:
    """The messages of a release, from image ``first`` of it on."""
    size = chunk_of(images.pixels[0].numel())
    for start in range(first, len(numbers), size):
        facts = {"first": start, "cut": noising.cut, "turn": noising.turn}
        yield Message("release", noising.of(images, numbers[start : start + size], start), facts)


def fingerprint(noising: Noising, images: Images, numbers: Tensor) -> str:
    """The hash of a release."""
    digest = hashlib.sha256()
    for message in chunks(noising, images, numbers):
        for name in sorted(message.tensors):
            digest.update(message.tensors[name].numpy().tobytes())
    return digest.hexdigest()


class Batch(NamedTuple):
    """Released images, the cut of each, and their labels where those were told."""

    images: Tensor
    cuts: Tensor
    labels: Tensor | None


class Store:
    """What the server holds of one silo's release."""

    def __init__(self, cut: int, enrolled: int, turn: int = 0) -> None:
        self.cut, self.enrolled, self.turn = cut, enrolled, turn
        self.parts: list[Tensors] = []
        self.count = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return self.count == self.enrolled

    def check(self, message: Message, classes: int) -> None:
        """Refuse what is not the next part of this release."""
        first, cut, turn = (message.facts[name] for name in ("first", "cut", "turn"))
        images, labels = message.tensors["images"], message.tensors.get("labels")
        if cut != self.cut:
            raise Refused(Reason.OTHER_CUT, f"is released at step {cut}, {self.cut} is the cut of this silo")
        if turn == self.turn and first < self.count:
            raise Refused(Reason.RELEASED, f"images from {first} on came before; {self.count} are held")
        if turn != self.turn or first > self.count or not 0 < len(images) <= self.enrolled - first:
            raise Refused(Reason.OUT_OF_SEQUENCE, f"{len(images)} images from {first} on came after {self.count}")
        if float(images.abs().max()) > FARTHEST:
            raise Refused(Reason.NOT_FINITE, f"images reach beyond {FARTHEST:g}")
        if labels is not None and (len(labels) != len(images) or not bool(((labels >= 0) & (labels < classes)).all())):
            raise Refused(Reason.WRONG_FACTS, f"labels are not one for each image, from 0 to {classes - 1}")

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep a part."""
        self.parts.append(dict(tensors))
        self.count += len(tensors["images"])

    def tensors(self) -> Tensors:
        """All that is held, as one."""
        if len(self.parts) > 1:
            self.parts = [{name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}]
        return self.parts[0] if self.parts else {}

    def labels(self) -> set[int]:
        """The labels that the silo has told of its own."""
        return {label for part in self.parts if "labels" in part for label in part["labels"].unique().tolist()}


def together(stores: list[Store], device: torch.device) -> Batch:
    """All that silos have released, on a device."""
    held = [store.tensors() for store in stores]
    cuts = torch.cat([torch.full((store.count,), store.cut) for store in stores])
    labels = torch.cat([each["labels"] for each in held]).to(device) if "labels" in held[0] else None
    return Batch(torch.cat([each["images"] for each in held]).to(device), cuts.to(device), labels)
