"""Weights rounded to a few bits, as FedDM sends them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from manyhands.messages.codec.codec import Codec, Encoded
from manyhands.messages.codec.packing import pack, packed_size, unpack
from manyhands.tensors import StateSpec, Tensors, TensorSpec


class Weights(Codec):
    """Each tensor's own values, rounded to the nearest of 2 ** bits that are evenly spread from its least to its most.

    s = (max - min) / (2^b - 1), q = round((x - min) / s), and min + s q is what comes. FedDM, its readers say, rounds
    the parameters after training, in both directions; affine, per tensor and by its range is our reading. What is lost
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
        """The codes of all tensors in the order of their names, and the least and the step of each."""
        codes, steps, leasts = [], [], []
        for name in sorted(tensors):
            x = tensors[name]
            least, most = x.aminmax()
            step = (most - least) / (2**self.bits - 1)
            code = ((x - least) / step).round().clamp(0, 2**self.bits - 1) if step > 0 else torch.zeros_like(x)
            codes.append(pack(code.to(torch.uint8), self.bits))
            steps.append(step)
            leasts.append(least)
        return Encoded({"codes": torch.cat(codes), "steps": torch.stack(steps), "leasts": torch.stack(leasts)}, {})

    def decode(self, wire: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Tensors:
        """What the codes stand for."""
        names = sorted(base)
        sizes = [packed_size(base[name].numel(), self.bits) for name in names]
        parts = torch.split(wire["codes"], sizes)
        return {
            name: unpack(part, base[name].numel(), self.bits).float().mul_(step).add_(least).view(base[name].shape)
            for name, part, step, least in zip(names, parts, wire["steps"], wire["leasts"], strict=True)
        }

    def wire_spec(self, layout: StateSpec) -> StateSpec:
        """Three tensors of known length."""
        size = sum(packed_size(like.size, self.bits) for like in layout.values())
        return {
            "codes": TensorSpec((size,), torch.uint8),
            "steps": TensorSpec((len(layout),), torch.float32),
            "leasts": TensorSpec((len(layout),), torch.float32),
        }

    def extremes(self, wire: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Both ends of each tensor."""
        ends = wire["leasts"], wire["leasts"] + (2**self.bits - 1) * wire["steps"]
        return {"the range of a tensor": torch.cat(ends)}
