"""Ids of images - a patient, a writer, a slide - of which no text is kept, and whole ids that are held out."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

import numpy as np
import torch

from manyhands.data.sources.idx_file import read_idx
from manyhands.errors import DataError
from manyhands.seed import numpy_rng

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_KEY = secrets.token_bytes(32)
"""Drawn when a process starts, and never written: nobody can try all patients' numbers to find out whose a hash is."""


def hash_ids(texts: Iterable[str]) -> torch.Tensor:
    """Return a keyed hash of each id, int64, (N,). Hashes are equal where ids are, in this process and in no other."""
    digests = [
        hashlib.blake2b(text.encode(errors="surrogateescape"), key=_KEY, digest_size=8).digest() for text in texts
    ]
    return torch.from_numpy(np.frombuffer(b"".join(digests), np.int64).copy())


def number_ids(ids: np.ndarray) -> np.ndarray:
    """Number ids, (N,), in the order in which they first come, so that nothing depends on their hashes."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[inverse])


def ids_to_hold_out(ids: np.ndarray, cells: np.ndarray, share: float) -> np.ndarray:
    """Choose whole ids to hold out, so that about the same share of each cell (a class of a domain) is held out.

    Ids come in random order; one is held out where that brings the counts of the cells closer to the share.

    Args:
        ids: The number of each image's id, (N,), counted from 0.
        cells: The number of each image's cell, (N,), counted from 0.
        share: The share to hold out.

    Returns:
        Whether each image is held out, (N,). At least one id is, and one is not, unless the share is 0 or 1.
    """
    if not 0 < share < 1:
        return np.full(len(ids), share == 1)
    counts = np.zeros((ids.max() + 1, cells.max() + 1))
    np.add.at(counts, (ids, cells), 1)
    if len(counts) < 2:
        raise DataError("all images have one id, so no whole id can be held out: name test images, or set held_out = 0")
    missing, held = share * counts.sum(0), np.zeros(len(counts), bool)
    for number in numpy_rng(0, "held-out ids").permutation(len(counts)):
        if not held.all() and np.abs(missing - counts[number]).sum() < np.abs(missing).sum():
            held[number] = True
            missing = missing - counts[number]
    if not held.any():
        held[counts.sum(1).argmin()] = True
    if held.all():
        held[counts.sum(1).argmin()] = False
    return np.asarray(held[ids])


def check_sides(ids: torch.Tensor, held: torch.Tensor, where: str) -> None:
    """Raise ``DataError`` where images of one id are on both sides of a split; ids are never named, but images are."""
    both = np.intersect1d(ids[held].numpy(), ids[~held].numpy())
    if len(both):
        rows = np.flatnonzero(ids.numpy() == both[0])
        sides = held.numpy()[rows]
        raise DataError(
            f"{where}: {len(both)} ids are on both sides of the split into training and test images; image "
            f"{rows[~sides][0] + 1} (training) and image {rows[sides][0] + 1} (test) have the same id: move whole ids "
            "to one side, or leave out the column of ids"
        )


def read_ids(path: Path, column: int = 0) -> np.ndarray:
    """Read the id of each image, (N,): from an idx file, or a text or CSV file with one line for each image."""
    if path.suffix in {".txt", ".csv"}:
        try:
            lines = [line for line in path.read_text().splitlines() if line.strip()]
            return np.array([line.split(",")[column].strip() for line in lines])
        except (OSError, UnicodeDecodeError, IndexError) as error:
            raise DataError(f"{path}: has no column {column} of ids: {error}") from None
    table = read_idx(path)
    if table.ndim > 2 or (table.ndim == 2 and column >= table.shape[1]):
        raise DataError(f"{path}: holds an array of shape {table.shape}, which has no column {column}")
    return table if table.ndim == 1 else table[:, column]
