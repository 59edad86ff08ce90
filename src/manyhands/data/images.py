"""Images and their labels, as bytes; a batch of them is in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from PIL import Image, ImageOps

from manyhands.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Images:
    """N images as bytes, N x C x H x W, one label each or none, and the names of the classes.

    ``domain`` says from which source an image came, where there are several, and ``rows`` where it stood in its source,
    where that is not plain from its place here. ``skipped`` names what was unreadable.
    """

    pixels: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    domain: Tensor | None = None
    rows: Tensor | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.dim() != 4:
            raise DataError(f"pixels are {self.pixels.dtype} {tuple(self.pixels.shape)}, not uint8 N x C x H x W")
        if self.labels is None:
            return
        if self.labels.shape != (len(self),):
            raise DataError(f"{len(self)} images have {len(self.labels)} labels")
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            bad = int(self.labels.min()) if int(self.labels.min()) < 0 else int(self.labels.max())
            raise DataError(f"label {bad} is outside the {len(self.classes)} classes (0 to {len(self.classes) - 1})")

    def __len__(self) -> int:
        return len(self.pixels)

    def subset(self, numbers: np.ndarray) -> Self:
        """The images of these numbers."""
        at = torch.from_numpy(numbers)
        rows = torch.arange(len(self)) if self.rows is None else self.rows
        labels = None if self.labels is None else self.labels[at]
        domain = None if self.domain is None else self.domain[at]
        return replace(self, pixels=self.pixels[at], labels=labels, domain=domain, rows=rows[at])

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


def join(parts: Sequence[Images]) -> Images:
    """All images of several sources; ``domain`` says which. Their classes must be the same."""
    first = parts[0]
    if any(part.classes != first.classes for part in parts):
        raise DataError(f"sources have different classes: {' / '.join(str(len(part.classes)) for part in parts)}")
    domain = torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])
    labels = [part.labels for part in parts if part.labels is not None]
    if len(labels) not in (0, len(parts)):
        raise DataError("some sources have labels and some have none")
    pixels = torch.cat([part.pixels for part in parts])
    skipped = tuple(name for part in parts for name in part.skipped)
    return Images(pixels, torch.cat(labels) if labels else None, first.classes, domain, skipped=skipped)


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
