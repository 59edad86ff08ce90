"""Images and their labels, as bytes; a batch of them is in [-1, 1]."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from PIL import Image, ImageOps

from manyhands.errors import DataError
from manyhands.seed import numpy_rng

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Images:
    """N images as bytes, N x C x H x W, one label each or none, and the names of the classes.

    ``domain`` says from which of the ``domains`` an image came, where there are several, and ``rows`` where it stood in
    its source, where that is not plain from its place here. ``held`` marks those that nobody trains on. ``skipped``
    names what was unreadable.
    """

    pixels: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    domain: Tensor | None = None
    rows: Tensor | None = None
    held: Tensor | None = None
    skipped: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.dim() != 4:
            raise DataError(f"pixels are {self.pixels.dtype} {tuple(self.pixels.shape)}, not uint8 N x C x H x W")
        if self.held is not None and (self.held.dtype != torch.bool or self.held.shape != (len(self),)):
            raise DataError(
                f"marks of what is held out are {self.held.dtype} {tuple(self.held.shape)}, not one bool for each of "
                f"{len(self)} images"
            )
        if self.labels is None:
            return
        if self.labels.shape != (len(self),):
            raise DataError(f"{len(self)} images have {len(self.labels)} labels")
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            bad = int(self.labels.min()) if int(self.labels.min()) < 0 else int(self.labels.max())
            raise DataError(f"label {bad} is outside the {len(self.classes)} classes (0 to {len(self.classes) - 1})")

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        """How many there are and of what size; a log that shows a silo shows none of its pixels."""
        size = " x ".join(str(length) for length in self.pixels.shape)
        return f"{type(self).__name__}({size}, {len(self.classes)} classes)"

    def subset(self, numbers: np.ndarray) -> Self:
        """The images of these numbers."""
        at = torch.from_numpy(numbers)
        rows = torch.arange(len(self)) if self.rows is None else self.rows
        labels = None if self.labels is None else self.labels[at]
        domain = None if self.domain is None else self.domain[at]
        held = None if self.held is None else self.held[at]
        return replace(self, pixels=self.pixels[at], labels=labels, domain=domain, rows=rows[at], held=held)

    def hold_out(self, share: float) -> Self:
        """The same images, a share of them marked as held out, of each class and each domain alike.

        Which ones depends on the images alone: runs with other seeds or other silos hold out the same.
        """
        rng, held = numpy_rng(0, "held out"), torch.zeros(len(self), dtype=torch.bool)
        nothing = torch.zeros(len(self), dtype=torch.long)
        kinds = torch.stack([nothing if told is None else told for told in (self.labels, self.domain)], 1)
        for kind in kinds.unique(dim=0):
            mine = torch.nonzero((kinds == kind).all(1)).flatten()
            held[mine[torch.from_numpy(rng.permutation(len(mine))[: round(share * len(mine))])]] = True
        return replace(self, held=held)

    def split_held_out(self) -> tuple[Self, Self]:
        """Those to train on, and those held out."""
        held = np.zeros(len(self), bool) if self.held is None else self.held.numpy()
        return self.subset(np.flatnonzero(~held)), self.subset(np.flatnonzero(held))

    def to(self, device: torch.device) -> Self:
        """The same images, where they are used."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, pixels=self.pixels.to(device), labels=labels)

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images in [-1, 1], and their labels."""
        return as_floats(self.pixels[numbers]), None if self.labels is None else self.labels[numbers]


def as_floats(pixels: Tensor) -> Tensor:
    """Bytes 0 to 255 as numbers -1 to 1."""
    return pixels.float().div_(127.5).sub_(1)


def as_bytes(images: Tensor) -> Tensor:
    """Numbers -1 to 1 as bytes 0 to 255; others are cut off at the ends."""
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def checked(images: Tensor) -> Tensor:
    """Images as bytes, from bytes or from numbers -1 to 1; anything else is an error, never wrapped or cut off."""
    if not isinstance(images, torch.Tensor):
        raise DataError(f"images are a {type(images).__name__}, not a tensor")
    if images.dim() != 4 or not len(images):
        raise DataError(f"images are {tuple(images.shape)}, not N x C x H x W")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"images are {images.dtype}; floats in [-1, 1] or uint8 are expected")
    low, high = images.min().item(), images.max().item()
    if not -1 <= low <= high <= 1:
        raise DataError(f"images go from {low:g} to {high:g}; floats in [-1, 1] or uint8 are expected")
    if low >= 0 and high > low:
        raise DataError(f"images go from {low:g} to {high:g}, as if black were 0; floats in [-1, 1] are expected")
    return as_bytes(images)


def join(parts: Sequence[Images], names: Sequence[str] = ()) -> Images:
    """All images of several sources; ``domain`` says which, by their ``names``. Their classes must be the same."""
    domain = torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])
    return replace(pooled(parts), domain=domain, rows=None, domains=tuple(names))


def pooled(parts: Sequence[Images]) -> Images:
    """All images of several holders, with what all of them say of theirs; what any of them holds out stays marked."""
    first = parts[0]
    if any(part.classes != first.classes for part in parts):
        raise DataError(f"there are different classes: {' / '.join(str(len(part.classes)) for part in parts)}")
    if len({part.labels is None for part in parts}) > 1:
        raise DataError("some have labels and some have none")
    told = {name: [getattr(part, name) for part in parts] for name in ("labels", "domain", "rows", "held")}
    if any(part.held is not None for part in parts):
        told["held"] = [torch.zeros(len(part), dtype=torch.bool) if part.held is None else part.held for part in parts]
    known = {name: torch.cat(values) for name, values in told.items() if all(value is not None for value in values)}
    skipped = tuple(name for part in parts for name in part.skipped)
    return Images(
        torch.cat([part.pixels for part in parts]),
        classes=first.classes,
        skipped=skipped,
        domains=first.domains,
        **known,
    )


def resized(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """One picture as bytes, channels x size x size: grey or RGB, upright, cut square about its middle."""
    picture = _eight_bits(ImageOps.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    if (picture.width, picture.height) != (side, side):
        picture = picture.crop((left, top, left + side, top + side))
    if side != size:
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen-bit grey scaled to eight; Pillow would cut it off at 255."""
    if image.mode == "F":
        raise ValueError("its pixels are fractions, of which no range is known")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))


@lru_cache(maxsize=1)
def occurrences(images: Images, held_out: Images | None = None) -> Tensor:
    """Which of the equal images of both sets each of the first is (0, 1, ...), in the order of their source."""
    sets = [part for part in (images, held_out) if part is not None]
    pixels = [image.numpy().tobytes() for part in sets for image in part.pixels]
    rows = [part.rows if part.rows is not None else torch.arange(len(part)) for part in sets]
    seen: Counter[bytes] = Counter()
    found = torch.zeros(len(pixels), dtype=torch.long)
    for i in torch.cat(rows).argsort(stable=True).tolist():
        found[i] = seen[pixels[i]]
        seen[pixels[i]] += 1
    return found[: len(images)]
