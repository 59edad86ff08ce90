"""The files of a run folder on the server, as the admin fetches them."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from manyhands.errors import Reason, Refused
from manyhands.federation.plans import PIECE_BYTES
from manyhands.messages.message import Message

_HIDDEN = re.compile(r"(^|/)\.")


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file by its path in the folder; hidden files are left out."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.stat().st_size for name, path in paths.items() if not _HIDDEN.search(name)}


def read_piece(folder: Path, path: str, start: int) -> Message:
    """Return a message with the bytes of a file from ``start`` on, as many as one message may have."""
    if path not in file_sizes(folder):
        raise Refused(Reason.WRONG_FACTS, f"{path!r} is not a file of {folder.name}")
    with (folder / path).open("rb") as file:
        file.seek(start)
        raw = file.read(PIECE_BYTES)
    return Message("file", {"bytes": torch.frombuffer(bytearray(raw), dtype=torch.uint8)} if raw else {})
