"""The memory of this process: how much it held, and giving back what is free."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def peak_memory() -> int:
    """The most bytes that this process has held so far, with those on a CUDA device."""
    unit = 1 if sys.platform == "darwin" else 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return held + (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


TRIM, MAP, ARENAS = -1, -3, -8
"""Options of the GNU C library: how much may stay unused, what gets pages of its own, how many threads hold memory."""
SPARE = {TRIM: 1 << 22, MAP: 17 << 16, ARENAS: 1}
"""Pages of their own for large tensors, and none for the parts of messages, which come and go."""
AMPLE = {TRIM: 1 << 26, MAP: 1 << 25, ARENAS: 1}


def release_memory(*, at_once: bool) -> None:
    """Give free memory back: ``at_once`` whenever it is freed, which is for who holds much, and makes training slower.

    Done before there are threads, it keeps each of them from holding memory of its own. Other C libraries do as they
    please.
    """
    _allocate(SPARE if at_once else AMPLE)


@contextmanager
def compact_heap() -> Iterator[None]:
    """Within ``release_memory(at_once=True)``: small tensors that are freed inside leave no holes either."""
    _allocate({MAP: 1 << 17})
    try:
        yield
    finally:
        _allocate(SPARE)


def _allocate(how: Mapping[int, int]) -> None:
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for option, value in how.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
