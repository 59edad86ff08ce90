"""The algebra of named tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class Like(NamedTuple):
    """What a named tensor must look like; ``None`` in a shape stands for any length."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype


Layout = Mapping[str, Like]


def layout(tensors: Mapping[str, Tensor]) -> Layout:
    """The names, shapes and types of tensors."""
    return {name: Like(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def snapshot(tensors: Mapping[str, Tensor]) -> Tensors:
    """A copy on the CPU that later training does not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def running_average(average: Tensors, latest: Tensors, decay: float, number: int) -> Tensors:
    """The exponential average after value ``number`` (from 0); decay 0 gives the latest value itself.

    The decay grows with the number until it reaches its own value, so that nothing of the start is left in it.
    """
    decay = min(decay, number / (number + 1))
    return {name: torch.lerp(latest[name], average[name], decay) for name in latest} if decay else latest


def finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a NaN or an infinity in it, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None


def sha256(tensors: Mapping[str, Tensor]) -> str:
    """One hash of names, types, shapes and every bit."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class WeightedMean:
    """A mean that is fed one set of tensors at a time and holds nothing but its sum.

    The sum is kept in float64, where whole-number weights times float32 values are exact: the mean of equal
    values is that value, bit for bit, and so is the mean of one.
    """

    def __init__(self) -> None:
        self.weight = 0
        self._sum: Tensors = {}

    def add(self, tensors: Mapping[str, Tensor], weight: int) -> None:
        """Fold ``weight`` times the tensors in."""
        for name, tensor in tensors.items():
            if name in self._sum:
                self._sum[name].add_(tensor, alpha=weight)
            else:
                self._sum[name] = tensor.double() * weight
        self.weight += weight

    def value(self) -> Tensors:
        """The mean of what was added, in float32."""
        return {name: (total / self.weight).float() for name, total in self._sum.items()}
