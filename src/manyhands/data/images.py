"""Images and their labels. They are stored as bytes; a batch of them is in [-1, 1]."""

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
    """N images as bytes, with their labels and the names of the classes.

    Args:
        pixels: The images, uint8, (N, C, H, W).
        labels: One class number for each image, (N,), or None.
        classes: The names of the classes, in the order of their numbers.
        domain: Which of several sources each image is from, (N,); None for a single source.
        rows: The row of each image in its source, (N,); None where it is the position here.
        held: Which images are held out from training, bool, (N,); None for no marks.
        skipped: Files that could not be read, with the reason.
        domains: The names of the sources, in the order of their numbers.
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
                f"the held-out marks are {self.held.dtype} {tuple(self.held.shape)}, not one bool for each of "
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
        """Show number and size only, so that a log which shows a silo shows none of its pixels."""
        size = " x ".join(str(length) for length in self.pixels.shape)
        return f"{type(self).__name__}({size}, {len(self.classes)} classes)"

    def subset(self, numbers: np.ndarray) -> Self:
        """Return the images with these numbers."""
        index = torch.from_numpy(numbers)
        rows = torch.arange(len(self)) if self.rows is None else self.rows
        labels = None if self.labels is None else self.labels[index]
        domain = None if self.domain is None else self.domain[index]
        held = None if self.held is None else self.held[index]
        return replace(self, pixels=self.pixels[index], labels=labels, domain=domain, rows=rows[index], held=held)

    def hold_out(self, share: float) -> Self:
        """Mark a share of the images as held out: the same share of each class and each domain.

        The choice depends on the images alone. Runs with other seeds or other silos hold out the same images.

        Args:
            share: The share to hold out, from 0 to 1.
        """
        rng, held = numpy_rng(0, "held out"), torch.zeros(len(self), dtype=torch.bool)
        zeros = torch.zeros(len(self), dtype=torch.long)
        kinds = torch.stack([zeros if column is None else column for column in (self.labels, self.domain)], 1)
        for kind in kinds.unique(dim=0):
            members = torch.nonzero((kinds == kind).all(1)).flatten()
            held[members[torch.from_numpy(rng.permutation(len(members))[: round(share * len(members))])]] = True
        return replace(self, held=held)

    def split_held_out(self) -> tuple[Self, Self]:
        """Return the images to train on, and the held-out images."""
        held = np.zeros(len(self), bool) if self.held is None else self.held.numpy()
        return self.subset(np.flatnonzero(~held)), self.subset(np.flatnonzero(held))

    def to(self, device: torch.device) -> Self:
        """Return the same images on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, pixels=self.pixels.to(device), labels=labels)

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the images with these numbers in [-1, 1], (B, C, H, W), and their labels, (B,)."""
        return as_floats(self.pixels[numbers]), None if self.labels is None else self.labels[numbers]


def as_floats(pixels: Tensor) -> Tensor:
    """Convert bytes from 0 to 255 to floats in [-1, 1], of the same shape."""
    return pixels.float().div_(127.5).sub_(1)


def as_bytes(images: Tensor) -> Tensor:
    """Convert floats in [-1, 1] to bytes from 0 to 255, of the same shape; values outside are clamped."""
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def checked(images: Tensor) -> Tensor:
    """Return images as bytes, from bytes or from floats in [-1, 1].

    Args:
        images: A tensor of shape (N, C, H, W).

    Raises:
        DataError: For anything else; no value is wrapped or clamped in silence.
    """
    if not isinstance(images, torch.Tensor):
        raise DataError(f"images are of type {type(images).__name__}, not a tensor")
    if images.dim() != 4 or not len(images):
        raise DataError(f"images are {tuple(images.shape)}, not N x C x H x W")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"images are {images.dtype}; floats in [-1, 1] or uint8 are expected")
    low, high = images.min().item(), images.max().item()
    if not -1 <= low <= high <= 1:
        raise DataError(f"images range from {low:g} to {high:g}; floats in [-1, 1] or uint8 are expected")
    if low >= 0 and high > low:
        raise DataError(f"images range from {low:g} to {high:g}, as if black were 0; floats in [-1, 1] are expected")
    return as_bytes(images)


def join(parts: Sequence[Images], names: Sequence[str] = ()) -> Images:
    """Join the images of several sources; ``domain`` says which source each image is from.

    Args:
        parts: The images of each source; their classes must be the same.
        names: The names of the sources.
    """
    domain = torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])
    return replace(pooled(parts), domain=domain, rows=None, domains=tuple(names))


def pooled(parts: Sequence[Images]) -> Images:
    """Join the images of several silos.

    Labels, domains and rows are kept where every silo has them. Images that a silo holds out stay marked.
    """
    first = parts[0]
    if any(part.classes != first.classes for part in parts):
        raise DataError(f"the parts have different classes: {' / '.join(str(len(part.classes)) for part in parts)}")
    if len({part.labels is None for part in parts}) > 1:
        raise DataError("some parts have labels and some have none")
    columns = {name: [getattr(part, name) for part in parts] for name in ("labels", "domain", "rows", "held")}
    if any(part.held is not None for part in parts):
        columns["held"] = [
            torch.zeros(len(part), dtype=torch.bool) if part.held is None else part.held for part in parts
        ]
    known = {name: torch.cat(values) for name, values in columns.items() if all(value is not None for value in values)}
    skipped = tuple(name for part in parts for name in part.skipped)
    return Images(
        torch.cat([part.pixels for part in parts]),
        classes=first.classes,
        skipped=skipped,
        domains=first.domains,
        **known,
    )


def resized(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Turn a picture upright, crop it to the central square and resize it.

    Args:
        image: The picture, of any mode that Pillow reads.
        size: The side of the result in pixels.
        channels: 1 for grey, 3 for RGB.

    Returns:
        The pixels as bytes, (channels, size, size).
    """
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
    """Scale 16-bit grey to 8 bits; Pillow would clamp it at 255."""
    if image.mode == "F":
        raise ValueError("its pixels are floats of an unknown range")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))


@lru_cache(maxsize=1)
def occurrences(images: Images, held_out: Images | None = None) -> Tensor:
    """Number the equal images of both sets (0, 1, ...), in the order of their source.

    Args:
        images: N images.
        held_out: More images of the same source, or None.

    Returns:
        The number of each of ``images`` among the images that equal it, (N,).
    """
    sets = [part for part in (images, held_out) if part is not None]
    pixels = [image.numpy().tobytes() for part in sets for image in part.pixels]
    rows = [part.rows if part.rows is not None else torch.arange(len(part)) for part in sets]
    seen: Counter[bytes] = Counter()
    numbers = torch.zeros(len(pixels), dtype=torch.long)
    for i in torch.cat(rows).argsort(stable=True).tolist():
        numbers[i] = seen[pixels[i]]
        seen[pixels[i]] += 1
    return numbers[: len(images)]
