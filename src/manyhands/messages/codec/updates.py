"""What training changed, rounded to a few bits; what rounding leaves unsaid is said the next time."""

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
"""No number of a channel is as many root mean squares away."""
MIN_STEP, STEP_MARGIN = 1e-30, 1 + 2**-8
"""The least step, and by how much each is made larger before bfloat16 may make it smaller."""


class Updates(Codec):
    """The difference to what both sides hold, rounded channel by channel to 2 ** bits - 1 even steps about 0.

    The outermost step stands at the largest number of a channel, or at ``reach`` root mean squares of it if that is
    less: what is beyond is cut off. ``stochastic`` rounds up or down by chance, so that the mean of what is within is
    right; 2 bits are always rounded to the nearest, for by chance they would lose more than they say. With
    ``feedback`` all that an update lost, cut off or rounded, is added to the next one, so that their sum is right
    whatever the reach; without a ``reach`` it then is that which loses least of a normal distribution (of which 4 bits
    say .984 in one update, 3 bits .928, 2 bits .905). Without ``feedback`` nothing makes good for what is cut off: then
    the reach of what is rounded by chance is the largest number, if not told, and the mean of each update is right.
    Norms and biases, and weights with one of the names ``fine`` in theirs, travel in 16 bits. ``entropy`` writes
    frequent codes shorter (Huffman's code, by zlib).

    References:
        1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed Training of Speech DNNs,
            Seide et al., 2014
        QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding, Alistarh et al., 2017,
            arXiv 1610.02132
        DoubleSqueeze: Parallel Stochastic Gradient Descent with Double-Pass Error-Compensated Compression,
            Tang et al., 2019, arXiv 1905.05957
    """

    relative = True

    kind: Literal["updates"] = "updates"
    bits: Literal[8, 4, 3, 2] = 8
    reach: Float | None = Field(default=None, gt=0, le=100)
    stochastic: bool = True
    feedback: bool = True
    entropy: bool = False
    fine: tuple[str, ...] = ("conv_in", "conv_out")

    def encode(
        self,
        tensors: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        left: Mapping[str, Tensor],
        rng: torch.Generator,
    ) -> Encoded:
        """Codes, scales and 16-bit numbers, each of all tensors in the order of their names."""
        codes, scales, fine, unsaid = [], [], [], {}
        for name in sorted(tensors):
            update = tensors[name] - base[name]
            if name in left:
                update += left[name]
            if self._is_fine(name, update.dim()):
                fine.append(update.half().flatten())
                said = fine[-1].float()
            else:
                code, scale = self._rounded(update.view(len(update), -1), rng)
                codes.append(pack(code, self.bits))
                scales.append(scale)
                said = self._values(code, scale)
            if self.feedback:
                unsaid[name] = update.sub_(said.view(update.shape))
        packed = _joined(codes, torch.uint8)
        squeezed = _squeezed(packed) if self.entropy else packed
        wire = {"codes": squeezed, "scales": _joined(scales, torch.bfloat16), "fine": _joined(fine, torch.float16)}
        return Encoded(wire, unsaid)

    def decode(self, wire: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Tensors:
        """What the other side holds, and what was said of the difference."""
        fine = [name for name in sorted(base) if self._is_fine(name, base[name].dim())]
        coarse = [name for name in sorted(base) if name not in set(fine)]
        sizes = [packed_size(base[name].numel(), self.bits) for name in coarse]
        packed = _unsqueezed(wire["codes"], sum(sizes)) if self.entropy else wire["codes"]
        codes, scales = torch.split(packed, sizes), torch.split(wire["scales"], [len(base[name]) for name in coarse])
        said = dict(zip(fine, torch.split(wire["fine"].float(), [base[name].numel() for name in fine]), strict=True))
        for name, code, scale in zip(coarse, codes, scales, strict=True):
            said[name] = self._values(unpack(code, base[name].numel(), self.bits).view(len(scale), -1), scale)
        return {name: said[name].view(held.shape).add_(held) for name, held in base.items()}

    def wire_spec(self, layout: StateSpec) -> StateSpec:
        """Three tensors, of a length that is known but where codes are squeezed."""
        coarse = self._coarse(layout)
        fine = [like.size for name, like in layout.items() if self._is_fine(name, len(like.shape))]
        size = self._packed(layout)
        squeezed = TensorSpec(
            (None,), torch.uint8, size + size // 4096 + 64
        )  # the most, where nothing can be shortened
        return {
            "codes": squeezed if self.entropy else TensorSpec((size,), torch.uint8),
            "scales": TensorSpec((sum(like.shape[0] or 0 for like in coarse),), torch.bfloat16),
            "fine": TensorSpec((sum(fine),), torch.float16),
        }

    def check(self, wire: Mapping[str, Tensor], layout: StateSpec) -> None:
        """What is said must be in bounds, and squeezed codes as many as there are weights."""
        super().check(wire, layout)
        if self.entropy:
            _unsqueezed(wire["codes"], self._packed(layout))

    def extremes(self, wire: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The outermost step of each channel, and the numbers in 16 bits."""
        return {"a channel": wire["scales"].float() * (2 ** (self.bits - 1)), "a number in 16 bits": wire["fine"]}

    @property
    def loses_rounding(self) -> bool:
        """Whether what rounding loses is lost."""
        return not self.feedback

    def _coarse(self, layout: StateSpec) -> list[TensorSpec]:
        return [like for name, like in layout.items() if not self._is_fine(name, len(like.shape))]

    def _packed(self, layout: StateSpec) -> int:
        """The bytes of all codes, before they are squeezed."""
        return sum(packed_size(like.size, self.bits) for like in self._coarse(layout))

    def _is_fine(self, name: str, dimensions: int) -> bool:
        return dimensions < 2 or any(part in name for part in self.fine)

    def _rounded(self, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Codes from 0, and the step of each row."""
        steps = 2 ** (self.bits - 1) - 1
        reach = rows.square().mean(1).sqrt_().mul_(self._reach)
        scale = torch.minimum(rows.abs().amax(1), reach).mul_(STEP_MARGIN / steps).clamp_min_(MIN_STEP).bfloat16()
        x = rows / scale.float()[:, None]
        x += torch.rand(x.shape, generator=rng) + steps if self._by_chance else steps + 0.5
        return x.floor_().clamp_(0, 2 * steps).to(torch.uint8), scale

    @property
    def _by_chance(self) -> bool:
        return self.stochastic and self.bits > 2

    @property
    def _reach(self) -> float:
        """In root mean squares of a channel."""
        whole = self._by_chance and not self.feedback
        return self.reach or (NO_REACH if whole else DEFAULT_REACH[self.bits])

    def _values(self, codes: Tensor, scale: Tensor) -> Tensor:
        return codes.float().sub_(2 ** (self.bits - 1) - 1).mul_(scale.float()[:, None])


def _joined(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.empty(0, dtype=dtype)


def _squeezed(codes: Tensor) -> Tensor:
    coder = zlib.compressobj(zlib.Z_BEST_SPEED, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return torch.frombuffer(bytearray(coder.compress(codes.numpy().tobytes()) + coder.flush()), dtype=torch.uint8)


def _unsqueezed(squeezed: Tensor, size: int) -> Tensor:
    """Exactly so many codes, or a refusal: not a byte more is made of what came."""
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        codes = decoder.decompress(squeezed.numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise Refused(Reason.MALFORMED, f"its codes cannot be read: {error}") from None
    if len(codes) != size or not decoder.eof or decoder.unused_data:
        raise Refused(Reason.WRONG_SHAPE, f"{len(codes)} bytes of codes came, not {size}")
    return torch.frombuffer(bytearray(codes), dtype=torch.uint8)
