"""What sources of picture files share: which files are pictures, their classes, and those that cannot be read."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

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
Entry = tuple[str, int, Callable[[], Image.Image]]
"""A picture: its name for messages, its class number, and a function that opens it."""


def images_of_entries(
    where: str, entries: list[Entry], size: int, channels: int, classes: tuple[str, ...], allowed: float
) -> Images:
    """Open every entry. Those that cannot be read are skipped and named, up to the allowed share."""
    pixels, labels, rows, skipped = [], [], [], []
    for row, (name, label, open_picture) in enumerate(entries):
        try:
            pixels.append(resized(open_picture(), size, channels))
        except UNREADABLE as error:
            skipped.append(f"{name}: {error}")
        else:
            labels.append(label)
            rows.append(row)
    if len(skipped) > allowed * len(entries):
        raise DataError(
            f"{where}: {len(skipped)} of {len(entries)} pictures cannot be read, more than the {allowed:.1%} that "
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
