"""Checkpoints: written beside, synced, renamed; two generations are kept, and a changed bit is noticed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from manyhands.errors import CheckpointError, DiskError, MessageError
from manyhands.message import Message, decode, pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

MAGIC = b"MHC1"
GENERATIONS = 2


def write_checkpoint(folder: Path, number: int, message: Message) -> None:
    """Keep a message as generation ``number``."""
    write_kept(path_of(folder, number), message)


def write_kept(path: Path, message: Message) -> None:
    """Keep a message in a file, its hash before it; tensors go there piece by piece."""

    def fill(file: BinaryIO) -> None:
        digest = hashlib.sha256()
        file.write(MAGIC + bytes(digest.digest_size))
        for piece in pieces(message):
            digest.update(piece)
            file.write(piece)
        file.seek(len(MAGIC))
        file.write(digest.digest())

    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, fill)


def drop_generations(folder: Path, newest: int) -> None:
    """Drop all but ``newest`` and the one before it: older ones, and newer ones that were not gone on with."""
    with writing(folder):
        for number in generations(folder):
            if not newest - GENERATIONS < number <= newest:
                path_of(folder, number).unlink()


def read_checkpoint(folder: Path, number: int) -> Message:
    """The message of a generation."""
    return read_kept(path_of(folder, number))


def read_kept(path: Path) -> Message:
    """The message that was kept in a file, or an error that says what is wrong with it."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    start = len(MAGIC) + hashlib.sha256().digest_size
    if not raw.startswith(MAGIC) or hashlib.sha256(raw[start:]).digest() != raw[len(MAGIC) : start]:
        raise CheckpointError(
            f"{path}: is torn or was changed: its contents do not have the hash that it was kept with"
        )
    try:
        return decode(raw[start:])
    except MessageError as error:
        raise CheckpointError(f"{path}: {error}") from None


def generations(folder: Path) -> list[int]:
    """The numbers of the generations in a folder, newest first."""
    names = [path.stem.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*.mh")]
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def replace_file(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, whole."""
    fill = content if callable(content) else lambda file: file.write(content)
    beside = path.with_name(f".{path.name}.tmp")
    with writing(path):
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
    with writing(path):
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
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(handle, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write into; it takes the place of the old one when all is there."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with writing(folder):
            fresh.mkdir(parents=True)
            yield fresh
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turn what the system says against writing into an error of ours."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DiskError(f"{where}: cannot be written: {why}") from None


def path_of(folder: Path, number: int) -> Path:
    """Where a generation is kept."""
    return folder / f"checkpoint-{number:06d}.mh"
