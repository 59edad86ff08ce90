"""Decodes picture files, crops and resizes them: in this process, or in one for each core.

Nothing here imports PyTorch, so that the processes start fast and stay small.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from manyhands.data.resize import resized
from manyhands.errors import DataError

# everything that Pillow and zipfile raise for a picture that cannot be read
UNREADABLE = (
    OSError, SyntaxError, ValueError, RuntimeError, EOFError, zlib.error, struct.error,
    zipfile.BadZipFile, Image.DecompressionBombError,
)  # fmt: skip
CHUNK = 64
"""The number of pictures that a process decodes before it writes them."""
Task = tuple[Path, int, Sequence["ImageFile"], int, int]
"""A file, the number of its first picture to decode, those pictures, their size and channels."""
Watcher = Callable[[str, int, int], None]
WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)
"""Called with the name of a set, how many of its pictures are prepared, and how many there are."""


class ImageFile(NamedTuple):
    """A picture.

    Args:
        name: Its name in messages.
        label: Its class number.
        open: Opens it; another process can do so, too.
        version: What is another text when the picture has changed, such as its size and time; "" where that is not
            known, and the picture is decoded anew each time.
    """

    name: str
    label: int
    open: Callable[[], Image.Image]
    version: str = ""


def open_cell(rows: Any, number: int, column: str) -> Image.Image:
    """Take a picture out of a data set of the package ``datasets``."""
    picture: Image.Image = rows[number][column]
    return picture


def decoded(files: Sequence[ImageFile], size: int, channels: int) -> Iterator[np.ndarray | str]:
    """Yield the pixels of each picture, (channels, size, size), or why it cannot be read."""
    for file in files:
        try:
            yield resized(file.open(), size, channels)
        except UNREADABLE as error:
            yield f"{file.name}: {error}"


def decode_into(path: Path, name: str, files: Sequence[ImageFile], size: int, channels: int) -> dict[int, str]:
    """Decode pictures by all cores into a file of zeros.

    Args:
        path: The file, in which each picture has its place.
        name: The name of the set.
        files: The pictures.
        size: The side of the square images in pixels.
        channels: 1 for grey, 3 for RGB.

    Returns:
        Why a picture cannot be read, by its number.
    """
    skipped: dict[int, str] = {}
    watch = WATCHER.get() or (lambda *_: None)
    tasks = [(path, start, files[start : start + CHUNK], size, channels) for start in range(0, len(files), CHUNK)]
    try:
        for done, reasons in enumerate(_results(tasks), 1):
            skipped |= reasons
            watch(name, min(done * CHUNK, len(files)), len(files))
    except BrokenProcessPool as error:
        raise DataError(f"{name}: a process that decodes was killed, perhaps for its memory: {error}") from None
    return dict(sorted(skipped.items()))


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _results(tasks: Sequence[Task]) -> Iterator[dict[int, str]]:
    """Decode all chunks, on several cores by processes that do not run the main program again, as others would."""
    if usable_cores() == 1:
        yield from (_decode_chunk(*task) for task in tasks)
        return
    from joblib.externals.loky import ProcessPoolExecutor

    pool, finished = ProcessPoolExecutor(usable_cores()), False
    try:
        for future in as_completed([pool.submit(_decode_chunk, *task) for task in tasks]):
            yield future.result()
        finished = True
    finally:
        pool.shutdown(kill_workers=not finished)


def _decode_chunk(path: Path, first: int, files: Sequence[ImageFile], size: int, channels: int) -> dict[int, str]:
    pixels, skipped = np.zeros((len(files), channels, size, size), np.uint8), {}
    for i, result in enumerate(decoded(files, size, channels)):
        if isinstance(result, str):
            skipped[first + i] = result
        else:
            pixels[i] = result
    with path.open("r+b", buffering=0) as file:
        _write_at(file.fileno(), pixels.reshape(-1), first * math.prod(pixels.shape[1:]))
    return skipped


def _write_at(handle: int, raw: np.ndarray, start: int) -> None:
    at = 0
    while at < len(raw):
        at += os.pwrite(handle, raw.data[at:], start + at)
