"""Quantised updates: the change in training in a few bits; what quantisation loses is added to the next update."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from manyhands.errors import Reason, Refused
from manyhands.messages.codec.codec import Codec, Encoded
from manyhands.messages.codec.packing import pack, packed_size, unpack
from manyhands.spec import Float
from manyhands.tensors import StateSpec, Tensors, TensorSpec

DEFAULT_REACH = {8: 6.0, 4: 2.4, 3: 1.8, 2: 1.5}
NO_REACH = 1e9
"""A reach, in root mean squares of a channel, that no number exceeds."""
MIN_STEP, STEP_MARGIN = 1e-30, 1 + 2**-8
"""The smallest step, and the factor that makes up for steps being rounded down to bfloat16."""


class Updates(Codec):
    """Quantises the difference from the tensors that both sides have, channel by channel, to 2 ** bits - 1 even steps.

    The steps are symmetric about 0. The outermost is the largest number of the channel, or ``reach`` root mean squares
    of it if that is less; numbers beyond it are clipped. With ``feedback`` the sum of all updates is correct for any
    ``reach``, and the default ``reach`` is the one that loses least of a normal distribution (4 bits carry .984 of it
    in one update, 3 bits .928, 2 bits .905). Without ``feedback`` the default clips nothing when rounding is
    stochastic, so that the mean of each update is correct. Norms and biases are sent in 16 bits.

    References:
        1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed Training of Speech DNNs,
            Seide et al., 2014
        QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding, Alistarh et al., 2017,
            arXiv 1610.02132
        DoubleSqueeze: Parallel Stochastic Gradient Descent with Double-Pass Error-Compensated Compression,
            Tang et al., 2019, arXiv 1905.05957
    """

    relative = True

    kind: Literal["updates"] = Field(default="updates", description="The codec: quantised updates.")
    bits: Literal[8, 4, 3, 2] = Field(default=8, description="The bits of each number: 8, 4, 3 or 2.")
    reach: Float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="The outermost step in root mean squares of a channel; numbers beyond it are clipped. "
        "None chooses it by `bits` and `feedback`.",
    )
    stochastic: bool = Field(
        default=True,
        description="Whether numbers are rounded up or down at random, so that their mean is correct. "
        "2 bits are always rounded to the nearest step.",
    )
    feedback: bool = Field(
        default=True, description="Whether what quantisation loses of an update is added to the next one."
    )
    entropy: bool = Field(
        default=False, description="Whether frequent codes are written shorter, with Huffman's code (zlib)."
    )
    fine: tuple[str, ...] = Field(
        default=("conv_in", "conv_out"),
        description="Weights with one of these words in their names are sent in 16 bits.",
    )

    def encode(
        self,
        tensors: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        residual: Mapping[str, Tensor],
        rng: torch.Generator,
    ) -> Encoded:
        """Return the codes, the scales and the 16-bit numbers of all tensors, sorted by name."""
        codes, scales, fine, lost = [], [], [], {}
        for name in sorted(tensors):
            update = tensors[name] - base[name]
            if name in residual:
                update += residual[name]
            if self._is_fine(name, update.dim()):
                fine.append(update.half().flatten())
                sent = fine[-1].float()
            else:
                code, scale = self._quantised(update.view(len(update), -1), rng)
                codes.append(pack(code, self.bits))
                scales.append(scale)
                sent = self._values(code, scale)
            if self.feedback:
                lost[name] = update.sub_(sent.view(update.shape))
        packed = _joined(codes, torch.uint8)
        compressed = _compressed(packed) if self.entropy else packed
        wire = {"codes": compressed, "scales": _joined(scales, torch.bfloat16), "fine": _joined(fine, torch.float16)}
        return Encoded(wire, lost)

    def decode(self, wire: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Tensors:
        """Return ``base`` plus the decoded difference."""
        fine = [name for name in sorted(base) if self._is_fine(name, base[name].dim())]
        coarse = [name for name in sorted(base) if name not in set(fine)]
        sizes = [packed_size(base[name].numel(), self.bits) for name in coarse]
        packed = _decompressed(wire["codes"], sum(sizes)) if self.entropy else wire["codes"]
        codes, scales = torch.split(packed, sizes), torch.split(wire["scales"], [len(base[name]) for name in coarse])
        update = dict(zip(fine, torch.split(wire["fine"].float(), [base[name].numel() for name in fine]), strict=True))
        for name, code, scale in zip(coarse, codes, scales, strict=True):
            update[name] = self._values(unpack(code, base[name].numel(), self.bits).view(len(scale), -1), scale)
        return {name: update[name].view(tensor.shape).add_(tensor) for name, tensor in base.items()}

    def wire_spec(self, spec: StateSpec) -> StateSpec:
        """Return three tensors, whose lengths are known unless codes are compressed."""
        coarse = self._coarse(spec)
        fine = [tensor.size for name, tensor in spec.items() if self._is_fine(name, len(tensor.shape))]
        size = self._packed(spec)
        max_size = size + size // 4096 + 64  # if no code can be written shorter
        compressed = TensorSpec((None,), torch.uint8, max_size)
        return {
            "codes": compressed if self.entropy else TensorSpec((size,), torch.uint8),
            "scales": TensorSpec((sum(tensor.shape[0] or 0 for tensor in coarse),), torch.bfloat16),
            "fine": TensorSpec((sum(fine),), torch.float16),
        }

    def check(self, wire: Mapping[str, Tensor], spec: StateSpec) -> None:
        """Refuse numbers that are out of bounds, and compressed codes that are more or fewer than the weights."""
        super().check(wire, spec)
        if self.entropy:
            _decompressed(wire["codes"], self._packed(spec))

    def extremes(self, wire: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the outermost step of each channel, and the numbers in 16 bits."""
        return {"a channel": wire["scales"].float() * (2 ** (self.bits - 1)), "a number in 16 bits": wire["fine"]}

    @property
    def loses_rounding(self) -> bool:
        """Whether what quantisation loses is not sent later."""
        return not self.feedback

    def _coarse(self, spec: StateSpec) -> list[TensorSpec]:
        return [tensor for name, tensor in spec.items() if not self._is_fine(name, len(tensor.shape))]

    def _packed(self, spec: StateSpec) -> int:
        """Return the bytes of all codes before compression."""
        return sum(packed_size(tensor.size, self.bits) for tensor in self._coarse(spec))

    def _is_fine(self, name: str, dimensions: int) -> bool:
        return dimensions < 2 or any(part in name for part in self.fine)

    def _quantised(self, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the codes, counted from 0, and the step of each row."""
        steps = 2 ** (self.bits - 1) - 1
        reach = rows.square().mean(1).sqrt_().mul_(self._reach)
        scale = torch.minimum(rows.abs().amax(1), reach).mul_(STEP_MARGIN / steps).clamp_min_(MIN_STEP).bfloat16()
        x = rows / scale.float()[:, None]
        x += torch.rand(x.shape, generator=rng) + steps if self._rounds_at_random else steps + 0.5
        return x.floor_().clamp_(0, 2 * steps).to(torch.uint8), scale

    @property
    def _rounds_at_random(self) -> bool:
        return self.stochastic and self.bits > 2

    @property
    def _reach(self) -> float:
        """The reach in root mean squares of a channel."""
        unclipped = self._rounds_at_random and not self.feedback
        return self.reach or (NO_REACH if unclipped else DEFAULT_REACH[self.bits])

    def _values(self, codes: Tensor, scale: Tensor) -> Tensor:
        return codes.float().sub_(2 ** (self.bits - 1) - 1).mul_(scale.float()[:, None])


def _joined(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.empty(0, dtype=dtype)


def _compressed(codes: Tensor) -> Tensor:
    coder = zlib.compressobj(zlib.Z_BEST_SPEED, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return torch.frombuffer(bytearray(coder.compress(codes.numpy().tobytes()) + coder.flush()), dtype=torch.uint8)


def _decompressed(compressed: Tensor, size: int) -> Tensor:
    """Return exactly ``size`` bytes of codes, or refuse; at most one byte more is ever decompressed."""
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        codes = decoder.decompress(compressed.numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise Refused(Reason.MALFORMED, f"its codes cannot be read: {error}") from None
    if len(codes) != size or not decoder.eof or decoder.unused_data:
        raise Refused(Reason.WRONG_SHAPE, f"{len(codes)} bytes of codes were sent, not {size}")
    return torch.frombuffer(bytearray(codes), dtype=torch.uint8)
