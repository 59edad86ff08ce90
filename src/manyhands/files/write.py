"""Files are written so that a kill at any moment leaves the old one or the new one, whole."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from manyhands.errors import DiskError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO


def replace_file(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, whole."""
    fill = content if callable(content) else lambda file: file.write(content)
    beside = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        try:
            with beside.open("wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def new_file(path: Path, content: bytes) -> bool:
    """Write a file that only its owner can read, unless there is one already; whether it was written.

    Whoever looks sees it whole or not at all, and never with another mode.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=f".{path.name[:32]}.", dir=path.parent)  # of mode 600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(beside, path)
        except FileExistsError:
            return False
        finally:
            Path(beside).unlink()
        _sync_folder(path.parent)
    return True


@contextmanager
def locked_file(path: Path) -> Iterator[BinaryIO]:
    """A file to read and write, made for its owner alone if there is none; other processes that ask for it wait."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(handle, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into; it takes the place of the old one when all is there."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with disk_errors(folder):
            fresh.mkdir(parents=True)
            yield fresh
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn what the system says against writing into an error of ours."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DiskError(f"{where}: cannot be written: {why}") from None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
