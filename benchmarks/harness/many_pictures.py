"""Zip files of many JPEGs as large as CelebA's, made in a minute: smooth noise at several scales, no two alike."""

from __future__ import annotations

import io
import multiprocessing
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, BASES = 178, 218, 64
"""The sides of a picture in CelebA, and how many pictures all others are made of."""
CHUNK = 500


def write_zip(path: Path, count: int, processes: int) -> None:
    """Write a zip file of ``count`` pictures in two folders, the classes; those of the second are darker."""
    with (
        multiprocessing.get_context("spawn").Pool(processes) as pool,
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
    ):
        for start, pictures in zip(
            range(0, count, CHUNK), pool.imap(partial(_chunk, count), range(0, count, CHUNK)), strict=True
        ):
            for number, picture in enumerate(pictures, start):
                archive.writestr(f"{'ab'[number % 2]}/{number:06}.jpg", picture)


def bare_loop(path: Path, size: int, part: tuple[int, int]) -> int:
    """Decode, crop and resize one of several equal parts of a zip file with Pillow alone; return how many."""
    number, parts = part
    with zipfile.ZipFile(path) as archive:
        names = sorted(archive.namelist())[number::parts]
        for name in names:
            picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            square = picture.crop((left, top, left + side, top + side))
            np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    return len(names)


def _chunk(count: int, start: int) -> list[bytes]:
    return [_jpeg(number) for number in range(start, min(start + CHUNK, count))]


def _jpeg(number: int) -> bytes:
    rng = np.random.default_rng(number)
    first, second = (np.roll(_bases()[i], rng.integers(0, WIDTH, 2), (0, 1)) for i in rng.integers(0, BASES, 2))
    mixed = first.astype(np.int16) + second // (1 + number % 2)
    out = io.BytesIO()
    Image.fromarray((mixed // 2).astype(np.uint8)).save(out, "JPEG", quality=88)
    return out.getvalue()


_kept: list[np.ndarray] = []


def _bases() -> list[np.ndarray]:
    if not _kept:
        _kept.extend(_base(np.random.default_rng(10**9 + number)) for number in range(BASES))
    return _kept


def _base(rng: np.random.Generator) -> np.ndarray:
    """Noise whose strength falls with its frequency, as that of photographs does."""
    total = np.zeros((HEIGHT, WIDTH, 3))
    for cells in _scales():
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) / cells
    low, high = total.min(), total.max()
    return np.asarray((total - low) / (high - low) * 255, np.uint8)


def _scales() -> Iterator[int]:
    yield from (4, 8, 16, 32, 64)
