"""Counts floating-point operations."""

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
    **flop_registry,  # it lacks the attention kernels of the CPU
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}
"""Maps each kernel to a function that counts its operations from its arguments."""


class Meter:
    """Adds up floating-point operations; a multiplication and an addition count as two.

    Work is counted by PyTorch the first time that its key occurs; later work with the same key adds the same number.

    Args:
        known: The operations of each key, shared by all who do the same work.
    """

    def __init__(self, known: dict[Hashable, int]) -> None:
        self.known = known
        self.flops = 0

    @contextmanager
    def work(self, *key: Hashable) -> Iterator[None]:
        """Count the work inside this context, which must not yield to other silos.

        Args:
            key: What the number of operations depends on, such as the batch size.
        """
        if key in self.known:
            yield
        else:
            with _Counter() as counter:
                yield
            self.known[key] = counter.flops
        self.flops += self.known[key]


class _Counter(TorchDispatchMode):
    """Counts by PyTorch's table; its ``FlopCounterMode`` decomposes operations, which changes the last bits."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := COUNTED.get(func.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out
