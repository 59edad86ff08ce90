"""What a silo gives away for good: its images, noised up to its cut, once; and how the server keeps that."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manyhands.data.images import as_floats
from manyhands.diffusion.objective import noised
from manyhands.errors import Reason, Refused
from manyhands.message import Message
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
    """How a silo makes its release: the step of the cut, the norm that images are clipped to, what becomes of labels.

    The noise of an image is drawn from ``secret``, the image itself, the cut and, where images are released ``fresh``,
    the ``turn`` and its place in it: whoever has not the
    secret cannot draw it, no two images and no two cuts share any, and the same image is released the same a second
    time, so that nothing is to be gained from asking again. Generators of random numbers will not do here: PyTorch's
    has 32 bits of seed on a CPU, which can be tried one by one.
    """

    schedule: Schedule
    cut: int
    secret: str = field(repr=False)
    norm: float | None = None
    labels: Labels = "withhold"
    label_epsilon: float = 1.0
    turn: int = 0
    fresh: bool = False

    def of(self, images: Images, numbers: Tensor, first: int = 0) -> Tensors:
        """The release of the images of these numbers, the first of which has this place in the whole of it."""
        pixels = images.pixels[numbers]
        x_0 = clipped(as_floats(pixels), self.norm)
        eps = torch.stack([self._noise(image, first + i) for i, image in enumerate(pixels)]).reshape(x_0.shape)
        t = torch.full((len(x_0),), self.cut)
        released = {"images": noised(x_0, eps, *self.schedule.levels(t, x_0)) if self.cut else x_0}
        if self.labels == "withhold" or images.labels is None:
            return released
        pairs, classes = zip(pixels, images.labels[numbers].tolist(), strict=True), len(images.classes)
        return released | {"labels": torch.tensor([self._told(image, label, classes) for image, label in pairs])}

    def _noise(self, image: Tensor, place: int = 0) -> Tensor:
        anew = f"{self.turn} {place}" if self.fresh else ""
        told = f"noise\n{self.schedule!r}\n{self.cut}\n{self.norm}\n{anew}"
        return torch.from_numpy(normal(self._key(image, told), image.numel())).float()

    def _told(self, image: Tensor, label: int, classes: int) -> int:
        """The label; randomised, it is the true one with the odds e^epsilon against each of the others."""
        if self.labels == "share":
            return label
        key = self._key(image, f"label\n{label}")  # the same each time it is told, or averaging would tell the true one
        odds, (first, second) = math.exp(self.label_epsilon), uniform(key, 2)
        true = first < odds / (odds + classes - 1)
        return label if true else (label + 1 + int(second * (classes - 1))) % classes

    def _key(self, image: Tensor, what: str) -> bytes:
        return f"{self.secret}\n{what}\n".encode() + image.numpy().tobytes()


def clipped(x: Tensor, norm: float | None) -> Tensor:
    """Images scaled down to a norm where theirs is larger."""
    if norm is None:
        return x
    own: Tensor = x.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, *[1] * (x.dim() - 1))
    return x * own.reciprocal().mul(norm).clamp(max=1)


def uniform(key: bytes, count: int) -> np.ndarray:
    """Numbers between 0 and 1, both left out, that nobody can tell who has not the key."""
    raw = np.frombuffer(hashlib.shake_256(key).digest(8 * count), dtype="<u8")
    return ((raw >> 12) + 0.5) * 2.0**-52


def normal(key: bytes, count: int) -> np.ndarray:
    """Normal numbers by the same means (Box and Muller, 1958)."""
    u = uniform(key, 2 * math.ceil(count / 2)).reshape(2, -1)
    radius, angle = np.sqrt(-2 * np.log(u[0])), 2 * np.pi * u[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


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
