"""What a silo keeps between rounds: the tensors of its checkpoint, with a transaction for what may be refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import final

from torch import Tensor

from manyhands.errors import Refused


@final
class SiloMemory(Mapping[str, Tensor]):
    """The tensors that a method keeps at a silo between rounds; they are the silo's checkpoint.

    Args:
        tensors: The tensors to begin with, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors, each in the place of the one that had its name.

        Args:
            tensors: The tensors by name; they must not be changed in place later.
        """
        self._tensors = {**self._tensors, **tensors}

    def forget(self, *prefixes: str) -> None:
        """Forget the tensors whose names begin with one of these prefixes."""
        self._tensors = {name: tensor for name, tensor in self._tensors.items() if not name.startswith(prefixes)}

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Undo what is kept and forgotten in this context if ``Refused`` leaves it.

        A silo may hold it over a ``yield``, since it concerns no other silo. A checkpoint that is written meanwhile has
        what was kept: the message may have arrived, and then the silo goes on from there.
        """
        before = self._tensors
        try:
            yield
        except Refused:
            self._tensors = before
            raise
