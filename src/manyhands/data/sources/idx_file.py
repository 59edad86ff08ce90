"""Reads the idx format of MNIST and its family, plain or gzip."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from manyhands.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path) -> np.ndarray:
    """Read the array in an idx or idx.gz file.

    Args:
        path: The file.

    Raises:
        DataError: The file is missing, cut short or no idx file.
    """
    raw = _read(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _TYPES or not raw[3]:
        raise DataError(f"{path}: is not an idx file (it starts with {raw[:4].hex(' ') or 'nothing'})")
    dtype, start = np.dtype(_TYPES[raw[2]]), 4 + 4 * raw[3]
    if len(raw) < start:
        raise DataError(f"{path}: is cut short in its header")
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        problem = "is cut short" if len(raw) < expected else "is too long"
        raise DataError(
            f"{path}: {problem}: {' x '.join(map(str, shape))} needs {expected:,} bytes, it has {len(raw):,}"
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape)


def _read(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read, it may be cut short: {error}") from None
