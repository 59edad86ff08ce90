"""What tensors weigh on the wire."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from manyhands.errors import Reason, Refused
from manyhands.messages.operation import mismatch
from manyhands.spec import Spec
from manyhands.tensors import StateSpec, Tensors, TensorSpec

MAX_WEIGHT = 6e4
"""No weight is larger than this, so that each can be said in 16 bits."""


class Encoded(NamedTuple):
    """Tensors as they travel, and what could not be said of each and is to be said the next time."""

    wire: Tensors
    residual: Tensors


class Codec(Spec, ABC):
    """How a set of float32 tensors is put on the wire and taken off it again.

    ``base`` are tensors of the same names that both sides know. ``relative`` marks a codec that sends the difference
    to them.
    """

    relative: ClassVar[bool] = False

    @abstractmethod
    def encode(
        self,
        tensors: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        left: Mapping[str, Tensor],
        rng: torch.Generator,
    ) -> Encoded:
        """The tensors as they travel; those that travel as they are stay the same, and are not copied."""

    @abstractmethod
    def decode(self, wire: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors in float32, as the other side receives them; no dict where they are read when asked for."""

    @abstractmethod
    def wire_spec(self, layout: StateSpec) -> StateSpec:
        """What the plan must expect of tensors of this layout."""

    def check(self, wire: Mapping[str, Tensor], layout: StateSpec) -> None:
        """Refuse what the plan lets through, but would not decode to tensors of this layout that weights can be."""
        if bad := mismatch(self.wire_spec(layout), wire):
            raise bad
        for name, tensor in self.extremes(wire).items():
            if tensor.numel() and not float(tensor.abs().max()) <= MAX_WEIGHT:
                raise Refused(Reason.NOT_FINITE, f"{name} reaches beyond {MAX_WEIGHT:g}")

    @abstractmethod
    def extremes(self, wire: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Numbers among which are the largest that the wire decodes to."""

    @property
    def loses_rounding(self) -> bool:
        """Whether it sends differences, and what rounding them loses is lost."""
        return False


def max_wire_bytes(codec: Codec, layout: StateSpec) -> int:
    """The most bytes that tensors of this layout take on the wire."""
    return sum(like.dtype.itemsize * like.size for like in codec.wire_spec(layout).values())


class _Float(Codec, ABC):
    dtype: ClassVar[torch.dtype]

    def encode(
        self,
        tensors: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        left: Mapping[str, Tensor],
        rng: torch.Generator,
    ) -> Encoded:
        return Encoded({name: tensor.to(self.dtype) for name, tensor in tensors.items()}, {})

    def decode(self, wire: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: tensor.float() for name, tensor in wire.items()}

    def wire_spec(self, layout: StateSpec) -> StateSpec:
        return {name: TensorSpec(like.shape, self.dtype) for name, like in layout.items()}

    def extremes(self, wire: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return wire


class Float32(_Float):
    """4 bytes a number; nothing is lost."""

    kind: Literal["float32"] = "float32"
    dtype = torch.float32

    def decode(self, wire: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As they are, wherever they are."""
        return wire


class Float16(_Float):
    """2 bytes a number; 11 bits of precision, up to 65,504."""

    kind: Literal["float16"] = "float16"
    dtype = torch.float16


class BFloat16(_Float):
    """2 bytes a number; 8 bits of precision, the range of float32."""

    kind: Literal["bfloat16"] = "bfloat16"
    dtype = torch.bfloat16
