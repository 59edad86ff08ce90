"""Where the bytes of a file are: in a folder, or in a zip file."""

from __future__ import annotations

import zipfile
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

from PIL import Image

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 30)
"""The most pixels of an image; Pillow refuses more of a PNG, too."""


class Place(NamedTuple):
    """A file, or a member of a zip file. Another process can open it, too.

    Args:
        path: The file, or the zip file.
        member: The name in the zip file; empty for a file of its own.
    """

    path: str
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.member}" if self.member else str(self.path)

    def open(self) -> IO[bytes]:
        """Open it for reading."""
        return _archive(self.path, self.changed()).open(self.member) if self.member else open(self.path, "rb")  # noqa: PTH123 - 200,000 paths as text take less memory

    def read(self) -> bytes:
        """Return its bytes."""
        with self.open() as file:
            return file.read()

    def changed(self) -> int:
        """Return when it was last changed, in nanoseconds."""
        return Path(self.path).stat().st_mtime_ns


@lru_cache(maxsize=4)
def _archive(path: str, changed: int) -> zipfile.ZipFile:  # noqa: ARG001 - a changed file is another key
    """The zip file as it was last changed; each process reads its list of members once."""
    return zipfile.ZipFile(path)
