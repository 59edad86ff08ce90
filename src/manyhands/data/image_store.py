"""Prepared images in a file of the cache, which holds their pixels and, at its end, an index.

The index is written last and with its hash, and the file gets its name when all of it is on the disk: a file that is
there is complete. One that is not, or is of another version, is prepared again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from manyhands.data.rows import RowsFile
from manyhands.errors import DiskError
from manyhands.files.cache import cache_folder
from manyhands.files.strict_json import finite_json
from manyhands.files.write import disk_errors, locked_file, sync_folder
from manyhands.formatting import size_text

MAGIC = b"MHIMAGE1"
"""The last bytes of a file; another layout has others."""
TAIL = struct.Struct("<Q32s8s")
"""The end of a file: the length of the index, its SHA-256, and ``MAGIC``."""
SUFFIX = ".images"
Shape = tuple[int, int, int, int]
Skipped = dict[int, str]
"""Why a picture could not be read, by its row."""


class ImageStore(NamedTuple):
    """Images in a file.

    Args:
        path: The file.
        name: Where the images come from.
        shape: Their number, channels, height and width; those that were skipped count, and are black.
        skipped: Which could not be read, and why.
    """

    path: Path
    name: str
    shape: Shape
    skipped: Skipped

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return self.path.stat().st_size

    def rows(self) -> RowsFile:
        """Open the pixels, (N, C, H, W)."""
        return RowsFile(self.path, self.shape[0], self.shape[1:])


def open_or_prepare(key: str, name: str, shape: Shape, fill: Callable[[Path], Skipped]) -> ImageStore:
    """Open the images with this key; prepare them first if they are not in the cache.

    Of several processes that need the same images one prepares them, and the others wait.

    Args:
        key: The hash of everything that the pixels follow from.
        name: Where the images come from.
        shape: Their number, channels, height and width.
        fill: Writes the pixels into a file of zeros, and returns what it could not read.
    """
    path = stores_folder() / f"{key}{SUFFIX}"
    if store := opened(path, shape):
        return store
    with disk_errors(path.parent):
        for folder in (cache_folder(), path.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_space(path, math.prod(shape))
    with locked_file(path.with_suffix(".lock")):
        return opened(path, shape) or _written(path, name, shape, fill)


def opened(path: Path, shape: Shape | None = None) -> ImageStore | None:
    """Read the index of a file; None where it is not there, not complete, of another version or of another shape."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(size - TAIL.size)
            length, digest, magic = TAIL.unpack(file.read(TAIL.size))
            pixels = size - TAIL.size - length
            file.seek(pixels)
            index = file.read(length)
    except (OSError, ValueError, struct.error, OverflowError):
        return None
    if magic != MAGIC or hashlib.sha256(index).digest() != digest:
        return None
    entry = json.loads(index)
    store = ImageStore(path, entry["name"], tuple(entry["shape"]), dict(entry["skipped"]))
    return store if math.prod(store.shape) == pixels and shape in (None, store.shape) else None


def stores() -> list[ImageStore]:
    """Return all images in the cache, in the order of their names."""
    every = [opened(path) for path in stores_folder().glob(f"*{SUFFIX}")]
    return sorted((store for store in every if store), key=lambda store: (store.name, store.shape))


def clear() -> int:
    """Delete all images in the cache but those that are being prepared, and return how many bytes they had.

    A run that has them open goes on with them.
    """
    freed = 0
    for path in [*stores_folder().glob(f"*{SUFFIX}"), *stores_folder().glob(".*.tmp")]:
        lock = path.with_name(path.name.lstrip(".").split(".")[0] + ".lock")
        with disk_errors(path), _free(lock) as free:
            if free:
                freed += path.stat().st_size
                path.unlink()
    return freed


def stores_folder() -> Path:
    """Return the folder of prepared images in the cache."""
    return cache_folder() / "images"


def _written(path: Path, name: str, shape: Shape, fill: Callable[[Path], Skipped]) -> ImageStore:
    for unfinished in path.parent.glob(f".{path.stem}.*.tmp"):
        unfinished.unlink()  # of a process that was killed: this one has the lock
    handle, made = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".tmp", dir=path.parent)  # of mode 600
    temporary = Path(made)
    try:
        with os.fdopen(handle, "r+b") as file:
            file.truncate(math.prod(shape))
            skipped = fill(temporary)
            index = finite_json({"name": name, "shape": shape, "skipped": list(skipped.items())}).encode()
            file.seek(0, os.SEEK_END)
            file.write(index + TAIL.pack(len(index), hashlib.sha256(index).digest(), MAGIC))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return ImageStore(path, name, shape, skipped)


def _check_space(path: Path, needed: int) -> None:
    disk = os.statvfs(path.parent)
    if (free := disk.f_bavail * disk.f_frsize) < needed:
        raise DiskError(
            f"{path.parent}: has {size_text(free)} free, prepared images need {size_text(needed)}: free some, with "
            "manyhands data clear, or set MANYHANDS_CACHE to a folder on another disk"
        )


@contextmanager
def _free(lock: Path) -> Iterator[bool]:
    """Hold a lock if nobody else does; say whether it is held."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def hash_texts(parts: Iterator[str] | list[Any]) -> str:
    """Return the first 32 letters of the hash of texts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]
