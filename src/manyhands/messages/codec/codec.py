"""Codecs, which encode tensors for a message with more or fewer bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from manyhands.errors import Reason, Refused
from manyhands.messages.operation import mismatch
from manyhands.spec import Spec
from manyhands.tensors import StateSpec, Tensors

MAX_WEIGHT = 6e4
"""The largest weight that is accepted, so that each weight can be a float16."""


class Encoded(NamedTuple):
    """Encoded tensors.

    Args:
        wire: The tensors of the message.
        residual: What the encoding lost of each tensor, to be added to the next update.
    """

    wire: Tensors
    residual: Tensors


class Codec(Spec, ABC):
    """An encoding of float32 tensors for a message.

    A codec with ``relative`` encodes the difference from ``base``: tensors of the same names that both sides have.
    """

    relative: ClassVar[bool] = False

    @abstractmethod
    def encode(
        self,
        tensors: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        residual: Mapping[str, Tensor],
        rng: torch.Generator,
    ) -> Encoded:
        """Encode tensors; a tensor that is sent unchanged is not copied.

        Args:
            tensors: The tensors, in float32.
            base: The tensors that both sides have.
            residual: What earlier encodings lost.
            rng: The generator of random rounding.
        """

    @abstractmethod
    def decode(self, wire: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Decode tensors to float32; the result is not a ``dict`` if they are in a file."""

    @abstractmethod
    def wire_spec(self, spec: StateSpec) -> StateSpec:
        """Return the encoded tensors of tensors with this spec."""

    def check(self, wire: Mapping[str, Tensor], spec: StateSpec) -> None:
        """Refuse encoded tensors that do not decode to tensors with this spec, or to numbers beyond ``MAX_WEIGHT``."""
        if bad := mismatch(self.wire_spec(spec), wire):
            raise bad
        for name, tensor in self.extremes(wire).items():
            if tensor.numel() and not float(tensor.abs().max()) <= MAX_WEIGHT:
                raise Refused(Reason.NOT_FINITE, f"{name} reaches beyond {MAX_WEIGHT:g}")

    @abstractmethod
    def extremes(self, wire: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return numbers among which are the largest that the encoded tensors decode to."""

    @property
    def loses_rounding(self) -> bool:
        """Whether it encodes differences and does not return a residual."""
        return False


def max_wire_bytes(codec: Codec, spec: StateSpec) -> int:
    """Return the most bytes of the encoded tensors of tensors with this spec."""
    return sum(tensor.dtype.itemsize * tensor.size for tensor in codec.wire_spec(spec).values())


class _Float(Codec, ABC):
    dtype: ClassVar[torch.dtype]

    def encode(
        self,
        tensors: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        residual: Mapping[str, Tensor],
        rng: torch.Generator,
    ) -> Encoded:
        return Encoded({name: tensor.to(self.dtype) for name, tensor in tensors.items()}, {})

    def decode(self, wire: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: tensor.float() for name, tensor in wire.items()}

    def wire_spec(self, spec: StateSpec) -> StateSpec:
        return {name: tensor._replace(dtype=self.dtype) for name, tensor in spec.items()}

    def extremes(self, wire: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return wire


class Float32(_Float):
    """Sends float32: 4 bytes a number, without loss."""

    kind: Literal["float32"] = Field(default="float32", description="The codec: numbers as float32.")
    dtype = torch.float32

    def decode(self, wire: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors unchanged."""
        return wire


class Float16(_Float):
    """Sends float16: 2 bytes a number, 11 bits of precision, values up to 65,504."""

    kind: Literal["float16"] = Field(default="float16", description="The codec: numbers as float16.")
    dtype = torch.float16


class BFloat16(_Float):
    """Sends bfloat16: 2 bytes a number, 8 bits of precision, the range of float32."""

    kind: Literal["bfloat16"] = Field(default="bfloat16", description="The codec: numbers as bfloat16.")
    dtype = torch.bfloat16
