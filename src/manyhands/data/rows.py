"""Rows of one shape, such as images, that stay in a file until they are read by their numbers."""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from manyhands.errors import DataError
from manyhands.files.write import disk_errors

MAX_CHUNK_BYTES = 1 << 25
"""The most bytes that are read at once where all rows are read one after the other."""
Numbers = np.ndarray | Tensor | Sequence[int] | slice


class RowsFile:
    """Rows of one shape and type at the beginning of an open file.

    They are read in place by position, and not mapped: memory then has only what was asked for, and a file that is cut
    short is an error and not the end of the process. The file stays open, and readable, when its name is deleted.

    Args:
        path: The file.
        count: The number of rows.
        shape: The shape of a row.
        dtype: The type of its numbers.
        handle: The open file, which is closed with this object; None opens it.
    """

    def __init__(
        self,
        path: Path,
        count: int,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.uint8,
        handle: int | None = None,
    ) -> None:
        self.path, self.shape, self.dtype = path, (count, *shape), dtype
        self._row_bytes = math.prod(shape) * dtype.itemsize
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if handle is None else handle
        weakref.finalize(self, os.close, self._handle)

    def read(self, numbers: np.ndarray) -> Tensor:
        """Return the rows with these numbers, from 0 to the number of rows - 1."""
        rows = torch.empty((len(numbers), *self.shape[1:]), dtype=self.dtype)
        raw = rows.numpy().reshape(-1).view(np.uint8).reshape(len(numbers), self._row_bytes)
        edges = np.flatnonzero(np.diff(numbers) != 1) + 1  # neighbours are read at once
        for start, stop in pairwise([0, *edges.tolist(), len(numbers)]):
            if stop > start:
                self._read_into(raw[start:stop].reshape(-1), int(numbers[start]))
        return rows

    def _read_into(self, raw: np.ndarray, first: int) -> None:
        start, at = first * self._row_bytes, 0
        while at < len(raw):
            got = os.preadv(self._handle, [raw.data[at:]], start + at)
            if not got:
                raise DataError(f"{self.path}: is cut short: row {(start + at) // self._row_bytes} is not there")
            at += got


class Rows:
    """A choice of rows of one or several files, or tensors, in any order. Choosing among them copies none.

    Args:
        parts: The files and tensors (N, ...), whose rows are of the same shape and type.
        index: The numbers of the chosen rows, counted through all parts; None chooses all.
    """

    def __init__(self, parts: Sequence[RowsFile | Tensor], index: np.ndarray | None = None) -> None:
        self.parts = tuple(parts)
        self._ends = np.cumsum([part.shape[0] for part in self.parts])
        self.index = np.arange(self._ends[-1]) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all rows together."""
        return (len(self), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """The type of their numbers."""
        return self.parts[0].dtype

    def __getitem__(self, numbers: Numbers) -> Rows:
        """Choose among these rows, without reading any."""
        return Rows(self.parts, self.index[_positions(numbers)])

    def read(self, numbers: Numbers = slice(None)) -> Tensor:
        """Read the rows with these numbers, by default all."""
        rows = self.index[_positions(numbers)]
        if len(self.parts) == 1:
            return _read(self.parts[0], rows)
        read = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        owners = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(owners):
            is_own = owners == number
            first = self._ends[number] - self.parts[number].shape[0]
            read[torch.from_numpy(is_own)] = _read(self.parts[number], rows[is_own] - first)
        return read

    def chunks(self) -> Iterator[Tensor]:
        """Read all rows, a part of them at a time."""
        size = max(1, MAX_CHUNK_BYTES // max(1, math.prod(self.shape[1:]) * self.dtype.itemsize))
        for start in range(0, len(self), size):
            yield self.read(slice(start, start + size))


class RowsBuffer:
    """Collects rows: in memory while they are few, else in a file without a name, which ends with its last reader.

    Args:
        folder: The folder on whose disk the file is.
        max_bytes: The most bytes that stay in memory.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._waiting: list[Tensor] = []
        self._bytes, self._count = 0, 0
        self._file: BinaryIO | None = None

    def add(self, rows: Tensor) -> None:
        """Add rows, (B, ...), on the CPU."""
        self._waiting.append(rows)
        self._count += len(rows)
        self._bytes += rows.nbytes
        if self._bytes > self._max_bytes:
            self._write()

    def rows(self) -> Tensor | Rows:
        """Return all that were added; none can be added any more."""
        shape, dtype = self._waiting[0].shape[1:], self._waiting[0].dtype
        if self._file is None:
            return torch.cat(self._waiting)
        self._write()
        self._file.flush()
        handle = os.dup(self._file.fileno())
        self._file.close()
        return Rows([RowsFile(self._folder, self._count, tuple(shape), dtype, handle)])

    def _write(self) -> None:
        with disk_errors(self._folder):
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - it is closed with this object
            for rows in self._waiting:
                self._file.write(rows.contiguous().numpy().data)
        self._waiting = [self._waiting[-1][:0]]


def joined(choices: Sequence[Rows]) -> Rows:
    """Return the rows of several choices, one after the other; rows of the same files are not copied."""
    parts = list({id(part): part for choice in choices for part in choice.parts}.values())
    ends = np.cumsum([part.shape[0] for part in parts])
    first = {id(part): end - part.shape[0] for part, end in zip(parts, ends, strict=True)}
    return Rows(parts, np.concatenate([_moved(choice, first) for choice in choices]))


def _moved(choice: Rows, first: dict[int, int]) -> np.ndarray:
    """The index of a choice where its parts begin elsewhere."""
    ends = np.cumsum([part.shape[0] for part in choice.parts])
    moves = np.array([first[id(p)] - (end - p.shape[0]) for p, end in zip(choice.parts, ends, strict=True)])
    moved: np.ndarray = choice.index + moves[np.searchsorted(ends, choice.index, side="right")]
    return moved


def _positions(numbers: Numbers) -> np.ndarray | slice:
    if isinstance(numbers, slice):
        return numbers
    positions = numbers.cpu().numpy() if isinstance(numbers, Tensor) else np.asarray(numbers)
    return positions if positions.dtype == bool else positions.astype(np.int64)


def _read(part: RowsFile | Tensor, rows: np.ndarray) -> Tensor:
    return part[torch.from_numpy(rows)] if isinstance(part, Tensor) else part.read(rows)
