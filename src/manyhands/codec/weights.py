"""Weights rounded to a few bits, as FedDM sends them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from manyhands.codec.codec import Codec, Encoded, bounded
from manyhands.codec.packing import pack, packed_size, unpack
from manyhands.tensors import Layout, Like, Tensors


class Weights(Codec):
    """Each tensor's own values, rounded to the nearest of 2 ** bits that are evenly spread from its least to its most.

    s = (max - min) / (2^b - 1), z = round(-min / s), q = clip(round(x / s) + z, 0, 2^b - 1), and s (q - z) is what
    comes: affine, per tensor, of weights already trained, as readers of FedDM describe its quantisation. What is lost
    is lost: a change of less than s / 2 in a round leaves no trace.

    References:
        FedDM: Enhancing Communication Efficiency and Handling Data Heterogeneity in Federated Diffusion Models,
            Vora et al., 2024, arXiv 2407.14730
    """

    kind: Literal["weights"] = "weights"
    bits: Literal[8, 4, 3, 2] = 8

    def encode(
        self,
        tensors: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        left: Mapping[str, Tensor],
        rng: torch.Generator,
    ) -> Encoded:
        """The codes of all tensors in the order of their names, and a scale and a zero for each."""
        parts, scales, zeros = [], [], []
        for name in sorted(tensors):
            x = tensors[name]
            least, most = x.aminmax()
            scale = (most - least) / (2**self.bits - 1)
            scale = scale if scale > 0 else least.abs() if least else torch.ones(())
            zero = (-least / scale).round()
            parts.append(pack((x / scale).round().add(zero).clamp(0, 2**self.bits - 1).to(torch.uint8), self.bits))
            scales.append(scale)
            zeros.append(zero.int())
        return Encoded({"codes": torch.cat(parts), "scales": torch.stack(scales), "zeros": torch.stack(zeros)}, {})

    def decode(self, wire: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Tensors:
        """What the codes stand for."""
        names = sorted(base)
        sizes = [packed_size(base[name].numel(), self.bits) for name in names]
        parts = torch.split(wire["codes"], sizes)
        return {
            name: ((unpack(part, base[name].numel(), self.bits).float() - zero) * scale).view(base[name].shape)
            for name, part, zero, scale in zip(names, parts, wire["zeros"], wire["scales"], strict=True)
        }

    def wire(self, layout: Layout) -> Layout:
        """Three tensors of known length."""
        size = sum(packed_size(like.size, self.bits) for like in layout.values())
        return {
            "codes": Like((size,), torch.uint8),
            "scales": Like((len(layout),), torch.float32),
            "zeros": Like((len(layout),), torch.int32),
        }

    def check(self, wire: Mapping[str, Tensor], layout: Layout) -> None:
        """Scales must be in bounds."""
        super().check(wire, layout)
        bounded(wire["scales"])
