"""The memory of this process: its peak, and when free memory goes back to the system."""

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
    """Return the peak of the bytes that this process has held so far, including those on a CUDA device."""
    unit = 1 if sys.platform == "darwin" else 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return held + (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


TRIM, MAP, ARENAS = -1, -3, -8
"""Options of mallopt in the GNU C library: how much may stay unused, from what size an allocation gets its own pages,
and how many arenas threads may have."""
TIGHT = {TRIM: 1 << 22, MAP: 17 << 16, ARENAS: 1}
"""Large tensors get their own pages; the parts of messages, which come and go, do not."""
AMPLE = {TRIM: 1 << 26, MAP: 1 << 25, ARENAS: 1}


def release_memory(*, at_once: bool) -> None:
    """Return free memory to the system now, and set when later free memory is returned.

    Called before threads are started, it keeps each thread from holding memory of its own. It has no effect with C
    libraries other than GNU.

    Args:
        at_once: Whether memory is returned whenever it is freed: for processes with much memory; slows training down.
    """
    _set_options(TIGHT if at_once else AMPLE)


@contextmanager
def compact_heap() -> Iterator[None]:
    """After ``release_memory(at_once=True)``: also return small tensors that are freed inside this context."""
    _set_options({MAP: 1 << 17})
    try:
        yield
    finally:
        _set_options(TIGHT)


def _set_options(options: Mapping[int, int]) -> None:
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for option, value in options.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
