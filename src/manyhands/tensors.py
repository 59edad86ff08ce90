"""Operations on named tensors, such as a state dict."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class TensorSpec(NamedTuple):
    """The expected shape and type of a tensor.

    Args:
        shape: Its shape; ``None`` stands for any length.
        dtype: Its type.
        max_size: The most numbers in it, where a length is open; ``None`` for no limit.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    max_size: int | None = None

    @property
    def size(self) -> int:
        """The most numbers in the tensor; without a limit, those of one item along the open length."""
        return math.prod((self.max_size or 1) if n is None else n for n in self.shape)

    @property
    def is_unbounded(self) -> bool:
        """Whether a length is open and there is no limit."""
        return None in self.shape and self.max_size is None


StateSpec = Mapping[str, TensorSpec]


def state_spec(tensors: Mapping[str, Tensor]) -> StateSpec:
    """Return the names, shapes and types of tensors; tensors in a file are not read."""
    if (known := getattr(tensors, "state_spec", None)) is not None:
        return known  # type: ignore[no-any-return] # an attribute of such mappings
    return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def zeros(spec: StateSpec) -> Tensors:
    """Create all-zero tensors of these names and shapes; they take no memory."""
    return {
        name: torch.zeros((), dtype=tensor.dtype).expand([n or 0 for n in tensor.shape])
        for name, tensor in spec.items()
    }


def round_to_float16(tensors: Mapping[str, Tensor]) -> Tensors:
    """Round tensors to values that float16 represents exactly."""
    return {name: tensor.half().float() for name, tensor in tensors.items()}


def snapshot(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copy tensors to the CPU; later training does not change the copy."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def running_average(average: Tensors, latest: Tensors, decay: float, number: int) -> Tensors:
    """Update an exponential moving average with value ``number`` (counted from 0).

    Args:
        average: The average so far.
        latest: The new value.
        decay: The weight of the average; 0 returns ``latest`` itself. In the beginning it is at most
            ``number / (number + 1)``, so that the initial value has no weight.
        number: How many values came before.
    """
    decay = min(decay, number / (number + 1))
    return {name: torch.lerp(latest[name], average[name], decay) for name in latest} if decay else latest


def find_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that contains a NaN or an infinity, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not all(map(math.isfinite, tensor.detach().aminmax())):
            return name  # a NaN is both the least and the largest
    return None


class TensorInParts(Protocol):
    """A tensor that is read part by part, along its first axis."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all of it."""
        ...

    def chunks(self) -> Iterator[Tensor]:
        """Return its parts, in order."""
        ...


def sha256(tensors: Mapping[str, Tensor] | Mapping[str, Tensor | TensorInParts]) -> str:
    """Hash the names, types, shapes and bits of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in (tensor,) if isinstance(tensor, Tensor) else tensor.chunks():
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_tensor(digest: str) -> Tensor:
    """Return a hash in hexadecimal digits as bytes, in which form a checkpoint holds it."""
    return torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """Select the tensors whose names begin with a prefix, and remove it from their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def add_prefix(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """Put a prefix before each name."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def weighted_sum(sets: Mapping[str, Mapping[str, Tensor]], shares: Mapping[str, float]) -> Tensors:
    """Add up sets of named tensors, each times its share, in float64; with the single share 1 it is that set.

    ``WeightedMean`` is for whole numbers as weights: its sums are exact.

    Args:
        sets: The sets, by the name of who they are from.
        shares: The share of each that counts; together 1, for a mean.
    """
    total: Tensors = {}
    for owner, share in shares.items():
        for name, tensor in sets[owner].items():
            total[name] = total.get(name, 0) + tensor.double() * share
    return {name: tensor.float() for name, tensor in total.items()}


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Reshape one number for each image, (B,), so that it multiplies a batch, (B, C, H, W)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


class WeightedMean:
    """A weighted mean of sets of named tensors that are added one at a time; a set may lack some names.

    The sum is in float64, where integer weights times float32 values are exact: the mean of equal values is that
    value, bit for bit. A set that is not a ``dict`` is in a file. It and the sets after it stay where they are until
    the mean is computed, which then sums them name by name.
    """

    def __init__(self) -> None:
        self._sum: Tensors = {}
        self._weight: dict[str, int] = {}
        self._waiting: list[tuple[Mapping[str, Tensor], int]] = []

    def add(self, tensors: Mapping[str, Tensor], weight: int) -> None:
        """Add ``weight`` times the tensors."""
        if self._waiting or not isinstance(tensors, dict):
            self._waiting.append((tensors, weight))
            return
        for name, tensor in tensors.items():
            self._accumulate(name, tensor, weight)

    def value(self) -> Tensors:
        """Return the mean in float32, of every name that was added. The object cannot be used afterwards."""
        names = dict.fromkeys([*self._sum, *(name for tensors, _ in self._waiting for name in tensors)])
        return {name: self._mean(name) for name in names}

    def _mean(self, name: str) -> Tensor:
        for tensors, weight in self._waiting:
            if name in tensors:
                self._accumulate(name, tensors[name], weight)
        return self._sum.pop(name).div_(self._weight[name]).float()

    def _accumulate(self, name: str, tensor: Tensor, weight: int) -> None:
        if name in self._sum:
            self._sum[name].add_(tensor, alpha=weight)
        else:
            self._sum[name] = tensor.to(torch.float64, copy=True).mul_(weight)
        self._weight[name] = self._weight.get(name, 0) + weight
