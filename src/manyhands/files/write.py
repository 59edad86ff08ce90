"""Writes files so that a process killed at any moment leaves the old file or the new one, complete."""

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
    """Write a file so that a process killed at any moment leaves the old file or the new one, complete.

    Args:
        path: The file to write.
        content: Its bytes, or a function that writes them to an open file.
    """
    fill = content if callable(content) else lambda file: file.write(content)
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def new_file(path: Path, content: bytes) -> bool:
    """Write a file that only its owner can read, unless it exists; return whether it was written.

    Other processes see the complete file or none, and never with other permissions.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:32]}.", dir=path.parent)  # of mode 600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            Path(temporary).unlink()
        sync_folder(path.parent)
    return True


@contextmanager
def locked_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading and writing, locked: other processes wait for it. A new file is its owner's alone."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(handle, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder to write into; on success it replaces the old folder."""
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
def disk_errors(path: Path) -> Iterator[None]:
    """Raise a ``DiskError`` for any error of the operating system while writing ``path``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DiskError(f"{path}: cannot be written: {why}") from None


def sync_folder(folder: Path) -> None:
    """Have the disk keep the names of a folder's files."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
