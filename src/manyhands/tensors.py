"""The algebra of named tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class TensorSpec(NamedTuple):
    """What a named tensor must look like; ``None`` in a shape stands for any length, or any up to ``most``."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    max_size: int | None = None

    @property
    def size(self) -> int:
        """How many numbers at most; for a shape with an open length, of one item."""
        return math.prod((self.max_size or 1) if n is None else n for n in self.shape)

    @property
    def is_unbounded(self) -> bool:
        """Whether a length is open and has no limit here."""
        return None in self.shape and self.max_size is None


StateSpec = Mapping[str, TensorSpec]


def state_spec(tensors: Mapping[str, Tensor]) -> StateSpec:
    """The names, shapes and types of tensors; those that lie in a file are not read for it."""
    if (known := getattr(tensors, "state_spec", None)) is not None:
        return known  # type: ignore[no-any-return] # as such mappings have it
    return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def zeros(state_spec: StateSpec) -> Tensors:
    """Tensors of this layout that are all zero, and take no memory."""
    return {
        name: torch.zeros((), dtype=like.dtype).expand([n or 0 for n in like.shape])
        for name, like in state_spec.items()
    }


def round_to_float16(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors rounded so that float16 can say them exactly."""
    return {name: tensor.half().float() for name, tensor in tensors.items()}


def snapshot(tensors: Mapping[str, Tensor]) -> Tensors:
    """A copy on the CPU that later training does not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def running_average(average: Tensors, latest: Tensors, decay: float, number: int) -> Tensors:
    """The exponential average after value ``number`` (from 0); decay 0 gives the latest value itself.

    The decay grows with the number until it reaches its own value, so that nothing of the start is left in it.
    """
    decay = min(decay, number / (number + 1))
    return {name: torch.lerp(latest[name], average[name], decay) for name in latest} if decay else latest


def find_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a NaN or an infinity in it, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not all(map(math.isfinite, tensor.detach().aminmax())):
            return name  # a NaN is both the least and the largest
    return None


def sha256(tensors: Mapping[str, Tensor]) -> str:
    """One hash of names, types, shapes and every bit."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """Those whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def add_prefix(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The tensors under names that begin with a prefix."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


class WeightedMean:
    """A mean that is fed one set of tensors at a time and holds nothing but its sum; sets may lack a name.

    The sum is kept in float64, where whole-number weights times float32 values are exact: the mean of equal
    values is that value, bit for bit, and so is the mean of one. A set that is no dict lies elsewhere, in a file: it
    and those after it stay there until the mean is asked for, and are summed name by name.
    """

    def __init__(self) -> None:
        self._sum: Tensors = {}
        self._weight: dict[str, int] = {}
        self._waiting: list[tuple[Mapping[str, Tensor], int]] = []

    def add(self, tensors: Mapping[str, Tensor], weight: int) -> None:
        """Fold ``weight`` times the tensors in."""
        if self._waiting or not isinstance(tensors, dict):
            self._waiting.append((tensors, weight))
            return
        for name, tensor in tensors.items():
            self._fold(name, tensor, weight)

    def value(self) -> Tensors:
        """The mean of what was added, in float32; the names that nothing was added to are not in it. It ends here."""
        names = dict.fromkeys([*self._sum, *(name for tensors, _ in self._waiting for name in tensors)])
        return {name: self._mean(name) for name in names}

    def _mean(self, name: str) -> Tensor:
        for tensors, weight in self._waiting:
            if name in tensors:
                self._fold(name, tensors[name], weight)
        return self._sum.pop(name).div_(self._weight[name]).float()

    def _fold(self, name: str, tensor: Tensor, weight: int) -> None:
        if name in self._sum:
            self._sum[name].add_(tensor, alpha=weight)
        else:
            self._sum[name] = tensor.to(torch.float64, copy=True).mul_(weight)
        self._weight[name] = self._weight.get(name, 0) + weight
