"""Reads files that say which attributes each image has: the list of CelebA, or a plain CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from manyhands.errors import DataError
from manyhands.spec import suggest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

VALUES = ({-1, 1}, {0, 1})
"""How a file may write that an image does not have, or has, an attribute."""


class Attributes(NamedTuple):
    """The attributes in the file ``path``: their ``names``, and which each image ``has``, (images, attributes)."""

    path: Path
    names: tuple[str, ...]
    has: np.ndarray

    def any_of(self, names: Sequence[str]) -> np.ndarray:
        """Return whether each image has at least one of these attributes, (images,)."""
        for name in names:
            if name not in self.names:
                raise DataError(f"{self.path}: has no attribute {name!r}; {suggest(name, list(self.names))}")
        return np.asarray(self.has[:, [self.names.index(name) for name in names]].any(axis=1))


def read_attributes(path: Path) -> Attributes:
    """Read a file with one row for each image: its name, then 1 for an attribute that it has, -1 or 0 for one it lacks.

    CelebA's list starts with the number of images and a line of attribute names. A CSV starts with a line of column
    names; the first of them is that of the column of image names.
    """
    try:
        return Attributes(
            path, *_parsed([line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()])
        )
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, ValueError, DataError) as error:  # a UnicodeDecodeError is a ValueError
        raise DataError(f"{path}: is not a table of attributes: {error}") from None


def _parsed(lines: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    first = lines[0].strip() if lines else ""
    count = int(first) if first.isdecimal() else None
    comma = "," if count is None else None
    heads, rows = lines[:1] if count is None else lines[1:2], lines[1:] if count is None else lines[2:]
    names = [name.strip() for head in heads for name in head.split(comma)][count is None :]
    if not names or not rows or len(set(names)) < len(names):
        raise DataError("it must name each attribute once in its header, and then have one line for each image")
    if count not in (None, len(rows)):
        raise DataError(f"its first line says {count:,} images, but it has {len(rows):,} lines of images")
    width = 1 + len(names)
    if bad := next((i for i, row in enumerate(rows) if len(row.split(comma)) != width), None):
        raise DataError(f"image {bad + 1} has {len(rows[bad].split(comma)) - 1} values for {len(names)} attributes")
    table = np.loadtxt(rows, np.int8, comments=None, delimiter=comma, usecols=range(1, width), ndmin=2)
    if not any(set(np.unique(table)) <= values for values in VALUES):
        raise DataError(
            f"its values are {', '.join(map(str, np.unique(table)[:5]))}; -1 and 1, or 0 and 1, are expected"
        )
    return tuple(names), table == 1
