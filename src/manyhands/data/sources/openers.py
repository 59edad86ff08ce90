"""Functions with which another process opens a picture: nothing here imports PyTorch, which takes seconds."""

from __future__ import annotations

import io
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image


def open_member(path: Path, name: str) -> Image.Image:
    """Open a picture in a zip file."""
    return Image.open(io.BytesIO(_archive(path, path.stat().st_mtime_ns).read(name)))


def open_cell(rows: Any, number: int, column: str) -> Image.Image:
    """Take a picture out of a data set of the package ``datasets``."""
    picture: Image.Image = rows[number][column]
    return picture


@lru_cache(maxsize=4)
def _archive(path: Path, changed: int) -> zipfile.ZipFile:  # noqa: ARG001 - a changed file is another key
    """The zip file as it was last changed; each process reads its list of members once."""
    return zipfile.ZipFile(path)
