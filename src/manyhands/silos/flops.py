"""The floating-point operations of work."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

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
