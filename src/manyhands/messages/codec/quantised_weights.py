"""Weights quantised to a few bits, as FedDM sends them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from manyhands.messages.codec.codec import Codec, Encoded
from manyhands.messages.codec.packing import pack, packed_size, unpack
from manyhands.tensors import StateSpec, Tensors, TensorSpec


class Weights(Codec):
    """Quantises each tensor to 2 ** bits evenly spaced values between its minimum and its maximum.

    s = (max - min) / (2^b - 1) and q = round((x - min) / s); the receiver has min + s q. FedDM, as later papers say,
    quantises the parameters after training, in both directions; to do so affinely, per tensor and by its range is our
    reading. The loss is not made good: a change of less than s / 2 in a round has no effect.

    References:
        FedDM: Enhancing Communication Efficiency and Handling Data Heterogeneity in Federated Diffusion Models,
            Vora et al., 2024, arXiv 2407.14730
    """

    kind: Literal["weights"] = Field(default="weights", description="The codec: quantised weights.")
    bits: Literal[8, 4, 3, 2] = Field(default=8, description="The bits of each number: 8, 4, 3 or 2.")

    def encode(
        self,
        tensors: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        residual: Mapping[str, Tensor],
        rng: torch.Generator,
    ) -> Encoded:
        """Return the codes of all tensors, sorted by name, and the minimum and the step of each."""
        codes, steps, minima = [], [], []
        for name in sorted(tensors):
            x = tensors[name]
            minimum, maximum = x.aminmax()
            step = (maximum - minimum) / (2**self.bits - 1)
            code = ((x - minimum) / step).round().clamp(0, 2**self.bits - 1) if step > 0 else torch.zeros_like(x)
            codes.append(pack(code.to(torch.uint8), self.bits))
            steps.append(step)
            minima.append(minimum)
        return Encoded({"codes": torch.cat(codes), "steps": torch.stack(steps), "leasts": torch.stack(minima)}, {})

    def decode(self, wire: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Tensors:
        """Return the values of the codes."""
        names = sorted(base)
        sizes = [packed_size(base[name].numel(), self.bits) for name in names]
        parts = torch.split(wire["codes"], sizes)
        return {
            name: unpack(part, base[name].numel(), self.bits).float().mul_(step).add_(minimum).view(base[name].shape)
            for name, part, step, minimum in zip(names, parts, wire["steps"], wire["leasts"], strict=True)
        }

    def wire_spec(self, spec: StateSpec) -> StateSpec:
        """Return three tensors of known length."""
        size = sum(packed_size(tensor.size, self.bits) for tensor in spec.values())
        return {
            "codes": TensorSpec((size,), torch.uint8),
            "steps": TensorSpec((len(spec),), torch.float32),
            "leasts": TensorSpec((len(spec),), torch.float32),
        }

    def extremes(self, wire: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the minimum and the maximum of each tensor."""
        extremes = wire["leasts"], wire["leasts"] + (2**self.bits - 1) * wire["steps"]
        return {"the range of a tensor": torch.cat(extremes)}
