"""What work costs: floating-point operations, and memory."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping


_ATEN = torch.ops.aten
COUNTED: dict[Any, Any] = {
    **flop_registry,  # which leaves out that attention has a kernel of its own on the CPU
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}
"""What counts the operations of a kernel, given what the kernel is given."""


class Meter:
    """Adds up the floating-point operations of pieces of work; a multiplication and an addition are two.

    A piece is counted by PyTorch when its key is first met; later ones with the same key cost the same, and are not
    looked at. ``known`` is shared by all who do the same work.
    """

    def __init__(self, known: dict[Hashable, int]) -> None:
        self.known = known
        self.flops = 0

    @contextmanager
    def work(self, *key: Hashable) -> Iterator[None]:
        """Do a piece of work. Nothing may be yielded to other silos inside."""
        if key in self.known:
            yield
        else:
            with _Counter() as counter:
                yield
            self.known[key] = counter.flops
        self.flops += self.known[key]


class _Counter(TorchDispatchMode):
    """Counts by PyTorch's own table. Its ``FlopCounterMode`` takes operations apart, and so changes their last bits."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := COUNTED.get(func.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


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


def give_back(*, at_once: bool) -> None:
    """Give free memory back: ``at_once`` whenever it is freed, which is for who holds much, and makes training slower.

    Done before there are threads, it keeps each of them from holding memory of its own. Other C libraries do as they
    please.
    """
    _allocate(SPARE if at_once else AMPLE)


@contextmanager
def thrift() -> Iterator[None]:
    """Within ``give_back(at_once=True)``: small tensors that are freed inside leave no holes either."""
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
