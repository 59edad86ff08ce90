"""What sources of picture files share: their classes, and how they become images.

Large sets are decoded once, into a file of the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from manyhands.data import image_store
from manyhands.data.images import Images
from manyhands.data.rows import Rows
from manyhands.data.sources.base import label_tensor
from manyhands.data.sources.decoding import ImageFile, decode_into, decoded
from manyhands.errors import DataError

MIN_STORED = 500
"""The fewest pictures that are worth a file in the cache; fewer are decoded each time."""
DECODING = 1
"""The version of the code that decodes: another number where it gives other pixels."""


def images_of_files(
    where: str,
    files: Sequence[ImageFile],
    size: int,
    channels: int,
    classes: tuple[str, ...],
    allowed: float,
    *,
    settings: str = "",
) -> Images:
    """Open every picture. Those that cannot be read are skipped and named, up to the allowed share.

    Args:
        where: The name of the set in messages.
        files: The pictures.
        size: The side of the square images in pixels.
        channels: 1 for grey, 3 for RGB.
        classes: The names of the classes; empty for images without labels.
        allowed: The share of pictures that may be unreadable.
        settings: Whatever else their pixels depend on, as text.
    """
    stored: Tensor | Rows
    if len(files) >= MIN_STORED and all(file.version for file in files):
        stored, skipped = _stored(where, files, size, channels, allowed, settings)
    else:
        results = list(decoded(files, size, channels))
        skipped = {row: result for row, result in enumerate(results) if isinstance(result, str)}
        _check_skipped(where, len(files), skipped, allowed)
        stored = torch.from_numpy(np.stack([result for result in results if not isinstance(result, str)]))
    kept = np.array([row for row in range(len(files)) if row not in skipped])
    labels = label_tensor([files[row].label for row in kept]) if classes else None
    rows = torch.from_numpy(kept) if skipped else None
    return Images(stored, labels, classes, rows=rows, skipped=tuple(skipped.values()))


def _stored(
    where: str, files: Sequence[ImageFile], size: int, channels: int, allowed: float, settings: str
) -> tuple[Rows, image_store.Skipped]:
    """The readable pictures of a file in the cache, and why the others are not."""
    key = image_store.hash_texts(_key_parts(files, size, channels, settings))
    fill = partial(_fill, where=where, files=files, size=size, channels=channels, allowed=allowed)
    store = image_store.open_or_prepare(key, where, (len(files), channels, size, size), fill)
    _check_skipped(where, len(files), store.skipped, allowed)
    return Rows([store.rows()], np.setdiff1d(np.arange(len(files)), list(store.skipped))), store.skipped


def _fill(
    path: Path, where: str, files: Sequence[ImageFile], size: int, channels: int, allowed: float
) -> image_store.Skipped:
    skipped = decode_into(path, where, files, size, channels)
    _check_skipped(where, len(files), skipped, allowed)  # what is refused is not kept
    return skipped


def _key_parts(files: Sequence[ImageFile], size: int, channels: int, settings: str) -> Iterator[str]:
    yield f"{DECODING} {PIL.__version__} {size} {channels} {settings}"
    for file in files:
        yield file.name
        yield file.version


def _check_skipped(where: str, count: int, skipped: image_store.Skipped, allowed: float) -> None:
    if len(skipped) > allowed * count:
        raise DataError(
            f"{where}: {len(skipped)} of {count} pictures cannot be read, more than the {allowed:.1%} that "
            f"'unreadable' allows; the first is {next(iter(skipped.values()))}"
        )
    if len(skipped) == count:
        raise DataError(f"{where}: holds no readable pictures")


def version_of(path: Path) -> str:
    """Return the size and the time of the last change of a file, which a changed picture does not have."""
    about = path.stat()
    return f"{about.st_size} {about.st_mtime_ns}"


def class_folder(inner: str, classes: tuple[str, ...], names: Mapping[str, str]) -> str:
    """Return the nearest folder of a picture, by its name below the source, that is a class; "" where none is.

    Args:
        inner: The name below the source.
        classes: The names of the classes.
        names: The name of a class by the folder's, where they differ.
    """
    nearest = inner.rpartition("/")[0]
    while nearest and names.get(nearest, nearest) not in classes:
        nearest = nearest.rpartition("/")[0]
    return nearest


def class_of(where: str, inner: str, classes: tuple[str, ...], names: Mapping[str, str]) -> int:
    """Return the class number of a picture, which its folder says.

    Args:
        where: The name of the set in messages.
        inner: The name below the source.
        classes: The names of the classes.
        names: The name of a class by the folder's, where they differ.
    """
    if not classes:
        return 0
    if nearest := class_folder(inner, classes, names):
        return classes.index(names.get(nearest, nearest))
    folder = inner.rpartition("/")[0]
    renamed = f" ({names[folder]!r} by class_names)" if folder in names else ""
    what = f"its folder {folder!r}{renamed} is none of the classes" if folder else "is in none of the class folders"
    raise DataError(f"{where}: {inner}: {what} (the recipe or the other folders name {known_classes(classes)})")


def known_classes(classes: tuple[str, ...]) -> str:
    """Return the names of the first classes, for a message."""
    return ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
