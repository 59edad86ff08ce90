"""What passes through a network in training, activations and their gradients, in 32, 16 or 8 bits a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from manyhands.errors import Reason, Refused
from manyhands.messages.codec.codec import MAX_WEIGHT
from manyhands.messages.operation import mismatch
from manyhands.tensors import StateSpec, Tensors, TensorSpec

Bits = Literal[32, 16, 8]
STEPS = 255
MIN_SCALE = 1e-30


def encode(x: Tensor, bits: Bits, rng: torch.Generator) -> Tensors:
    """A batch of maps as it travels.

    In 16 bits as bfloat16, which has the range of float32. In 8 bits channel by channel, on even steps from its least
    to its largest number, up or down by chance, so that the mean is right.

    References:
        QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding, Alistarh et al., 2017,
            arXiv 1610.02132
    """
    if bits == 32:
        return {"x": x}
    if bits == 16:
        return {"x": x.bfloat16()}
    least, most = x.amin((0, 2, 3)), x.amax((0, 2, 3))
    step = ((most - least) / STEPS).clamp_min(MIN_SCALE)
    codes = (x - _wide(least)) / _wide(step) + torch.rand(x.shape, generator=rng, device=x.device)
    return {"x": codes.floor_().clamp_(0, STEPS).to(torch.uint8), "least": least, "step": step}


def decode(wire: Mapping[str, Tensor]) -> Tensor:
    """The maps in float32."""
    x = wire["x"].float()
    return x * _wide(wire["step"]) + _wide(wire["least"]) if "step" in wire else x


def wire_spec(like: TensorSpec, bits: Bits) -> StateSpec:
    """What a plan must expect of maps like these."""
    if bits == 8:
        each = TensorSpec((like.shape[1],), torch.float32)
        return {"x": TensorSpec(like.shape, torch.uint8), "least": each, "step": each}
    return {"x": like if bits == 32 else TensorSpec(like.shape, torch.bfloat16)}


def check(wired: Mapping[str, Tensor], like: TensorSpec, bits: Bits) -> None:
    """Refuse what is not of this form, or holds numbers with which a network could only come to infinity."""
    if bad := mismatch(wire_spec(like, bits), wired):
        raise bad
    ends = {name: tensor for name, tensor in wired.items() if tensor.is_floating_point()}
    if "step" in wired:
        ends["step"] = wired["step"] * STEPS
    for tensor in ends.values():
        if tensor.numel() and not float(tensor.abs().max()) <= MAX_WEIGHT:
            raise Refused(Reason.NOT_FINITE, f"an activation reaches beyond {MAX_WEIGHT:g}")


def _wide(channels: Tensor) -> Tensor:
    return channels[:, None, None]
