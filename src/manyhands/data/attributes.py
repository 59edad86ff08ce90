"""Files that say which attributes each image has: the list of CelebA, or a plain CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from manyhands.errors import DataError
from manyhands.spec import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WAYS = ({-1, 1}, {0, 1})


class Attributes(NamedTuple):
    """What a file tells: the names of the attributes, and whether each image has each (images x attributes)."""

    path: Path
    names: tuple[str, ...]
    has: np.ndarray

    def any_of(self, asked: Sequence[str]) -> np.ndarray:
        """Whether each image has at least one of these."""
        for name in asked:
            if name not in self.names:
                raise DataError(f"{self.path}: there is no attribute {name!r}; {nearest(name, list(self.names))}")
        return np.asarray(self.has[:, [self.names.index(name) for name in asked]].any(axis=1))


def read_attributes(path: Path) -> Attributes:
    """A row for each image: its name, and 1 for each attribute that it has, -1 or 0 for each that it has not.

    CelebA's list starts with a count and the names of the attributes; a CSV with one line of names, that of the
    images' own column first.
    """
    try:
        return Attributes(
            path, *_parsed([line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()])
        )
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, ValueError, DataError) as error:  # a UnicodeDecodeError is a ValueError
        raise DataError(f"{path}: is no table of attributes: {error}") from None


def _parsed(lines: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    first = lines[0].strip() if lines else ""
    told = int(first) if first.isdecimal() else None
    comma = "," if told is None else None
    heads, rows = lines[:1] if told is None else lines[1:2], lines[1:] if told is None else lines[2:]
    names = [name.strip() for head in heads for name in head.split(comma)][told is None :]
    if not names or not rows or len(set(names)) < len(names):
        raise DataError("it must name each attribute once, and then tell of images, a line each")
    if told not in (None, len(rows)):
        raise DataError(f"it says that it tells of {told:,} images, and tells of {len(rows):,}")
    width = 1 + len(names)
    if bad := next((i for i, row in enumerate(rows) if len(row.split(comma)) != width), None):
        raise DataError(f"image {bad + 1} has {len(rows[bad].split(comma)) - 1} values for {len(names)} attributes")
    table = np.loadtxt(rows, np.int8, comments=None, delimiter=comma, usecols=range(1, width), ndmin=2)
    if not any(set(np.unique(table)) <= way for way in WAYS):
        raise DataError(
            f"its values are {', '.join(map(str, np.unique(table)[:5]))}; -1 and 1, or 0 and 1, are expected"
        )
    return tuple(names), table == 1
