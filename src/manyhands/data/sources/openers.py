"""Functions with which another process opens a picture: nothing here imports PyTorch, which takes seconds."""

from __future__ import annotations

from typing import Any

from PIL import Image


def open_cell(rows: Any, number: int, column: str) -> Image.Image:
    """Take a picture out of a data set of the package ``datasets``."""
    picture: Image.Image = rows[number][column]
    return picture
