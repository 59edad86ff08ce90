"""Encodes the activations of a split network, and their gradients, in 32, 16 or 8 bits a number."""

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
    """Encode a batch of activations.

    16 bits are bfloat16, which has the range of float32. 8 bits are even steps between the smallest and the largest
    number of a channel, rounded up or down at random so that the mean is correct.

    Args:
        x: The activations, (B, C, H, W).
        bits: The bits of a number.
        rng: The generator of the random rounding.

    References:
        QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding, Alistarh et al., 2017,
            arXiv 1610.02132
    """
    if bits == 32:
        return {"x": x}
    if bits == 16:
        return {"x": x.bfloat16()}
    minimum, maximum = x.amin((0, 2, 3)), x.amax((0, 2, 3))
    step = ((maximum - minimum) / STEPS).clamp_min(MIN_SCALE)
    codes = (x - _wide(minimum)) / _wide(step) + torch.rand(x.shape, generator=rng, device=x.device)
    return {"x": codes.floor_().clamp_(0, STEPS).to(torch.uint8), "least": minimum, "step": step}


def decode(wire: Mapping[str, Tensor]) -> Tensor:
    """Decode a batch of activations to float32, (B, C, H, W)."""
    x = wire["x"].float()
    return x * _wide(wire["step"]) + _wide(wire["least"]) if "step" in wire else x


def wire_spec(spec: TensorSpec, bits: Bits) -> StateSpec:
    """Return the tensors of an encoded batch.

    Args:
        spec: The activations, (B, C, H, W).
        bits: The bits of a number.
    """
    if bits == 8:
        channels = TensorSpec((spec.shape[1],), torch.float32)
        return {"x": TensorSpec(spec.shape, torch.uint8), "least": channels, "step": channels}
    return {"x": spec if bits == 32 else TensorSpec(spec.shape, torch.bfloat16)}


def check(wire: Mapping[str, Tensor], spec: TensorSpec, bits: Bits) -> None:
    """Refuse other tensors than those of an encoded batch, and numbers so large that a network would overflow."""
    if bad := mismatch(wire_spec(spec, bits), wire):
        raise bad
    extremes = {name: tensor for name, tensor in wire.items() if tensor.is_floating_point()}
    if "step" in wire:
        extremes["step"] = wire["step"] * STEPS
    for tensor in extremes.values():
        if tensor.numel() and not float(tensor.abs().max()) <= MAX_WEIGHT:
            raise Refused(Reason.NOT_FINITE, f"an activation reaches beyond {MAX_WEIGHT:g}")


def _wide(channels: Tensor) -> Tensor:
    return channels[:, None, None]
