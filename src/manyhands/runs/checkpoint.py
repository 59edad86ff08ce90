"""Checkpoints: two generations are kept, and every changed bit is detected."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from manyhands.errors import CheckpointError, MessageError
from manyhands.files.write import disk_errors, replace_file
from manyhands.messages.message import Message, decode, pieces

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

MAGIC = b"MHC1"
GENERATIONS = 2


def write_checkpoint(folder: Path, number: int, message: Message) -> None:
    """Write a message as generation ``number``."""
    write_kept(path_of(folder, number), message)


def write_kept(path: Path, message: Message) -> None:
    """Write a message to a file, after its hash; tensors are written piece by piece."""

    def fill(file: BinaryIO) -> None:
        digest = hashlib.sha256()
        file.write(MAGIC + bytes(digest.digest_size))
        for piece in pieces(message):
            digest.update(piece)
            file.write(piece)
        file.seek(len(MAGIC))
        file.write(digest.digest())

    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, fill)


def drop_generations(folder: Path, newest: int) -> None:
    """Delete all generations but ``newest`` and the one before it, also newer ones that a resumed run did not use."""
    with disk_errors(folder):
        for number in generations(folder):
            if not newest - GENERATIONS < number <= newest:
                path_of(folder, number).unlink()


def read_checkpoint(folder: Path, number: int) -> Message:
    """Read the message of a generation."""
    return read_kept(path_of(folder, number))


def read_kept(path: Path) -> Message:
    """Read the message in a file, or raise an error that says what is wrong with it."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    start = len(MAGIC) + hashlib.sha256().digest_size
    if not raw.startswith(MAGIC) or hashlib.sha256(raw[start:]).digest() != raw[len(MAGIC) : start]:
        raise CheckpointError(
            f"{path}: is incomplete or was changed: its contents do not have the hash that was written with them"
        )
    try:
        return decode(raw[start:])
    except MessageError as error:
        raise CheckpointError(f"{path}: {error}") from None


def generations(folder: Path) -> list[int]:
    """The numbers of the generations in a folder, the newest first."""
    names = [path.stem.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*.mh")]
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def path_of(folder: Path, number: int) -> Path:
    """The file of a generation."""
    return folder / f"checkpoint-{number:06d}.mh"
