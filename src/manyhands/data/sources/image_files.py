"""What sources of picture files share: which files are pictures, their classes, and those that cannot be read."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from manyhands.data.images import Images
from manyhands.data.resize import resized
from manyhands.data.sources.base import label_tensor
from manyhands.errors import DataError

# everything that Pillow and zipfile raise for a picture that cannot be read
UNREADABLE = (
    OSError, SyntaxError, ValueError, RuntimeError, EOFError, zlib.error, struct.error,
    zipfile.BadZipFile, Image.DecompressionBombError,
)  # fmt: skip
SUFFIXES = {".png", ".jpg", ".jpeg"}


class ImageFile(NamedTuple):
    """A picture.

    Args:
        name: Its name in messages.
        label: Its class number.
        open: Opens it; another process can do so, too.
    """

    name: str
    label: int
    open: Callable[[], Image.Image]


def images_of_files(
    where: str, files: Sequence[ImageFile], size: int, channels: int, classes: tuple[str, ...], allowed: float
) -> Images:
    """Open every picture. Those that cannot be read are skipped and named, up to the allowed share."""
    pixels, labels, rows, skipped = [], [], [], []
    for row, file in enumerate(files):
        try:
            pixels.append(resized(file.open(), size, channels))
        except UNREADABLE as error:
            skipped.append(f"{file.name}: {error}")
        else:
            labels.append(file.label)
            rows.append(row)
    if len(skipped) > allowed * len(files):
        raise DataError(
            f"{where}: {len(skipped)} of {len(files)} pictures cannot be read, more than the {allowed:.1%} that "
            f"'unreadable' allows; the first is {skipped[0]}"
        )
    if not pixels:
        raise DataError(f"{where}: holds no readable pictures")
    with_labels = label_tensor(labels) if classes else None
    kept = torch.tensor(rows) if skipped else None
    return Images(torch.from_numpy(np.stack(pixels)), with_labels, classes, rows=kept, skipped=tuple(skipped))


def is_picture(name: str) -> bool:
    """Judge by the suffix. Files that systems hide beside pictures (``._cat.jpg``) do not count."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def class_names(inner: Iterable[str]) -> tuple[str, ...]:
    """Return the folders of pictures, by their names below the source."""
    return tuple(sorted({name.rsplit("/", 1)[0] for name in inner if "/" in name}))


def class_of(inner: str, classes: tuple[str, ...]) -> int:
    """Return the class number of a picture, from its name below the source."""
    if not classes:
        return 0
    name = inner.rsplit("/", 1)[0] if "/" in inner else ""
    if name not in classes:
        known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
        where = f"its folder {name!r} is none of the classes" if name else "is in none of the class folders"
        raise DataError(f"{inner}: {where} (the recipe or the other folders name {known})")
    return classes.index(name)
