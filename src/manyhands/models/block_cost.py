"""What a network costs, from its specification alone: nothing is trained, and no memory is taken."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from manyhands.models.state_spec import state_spec_of
from manyhands.silos.flops import Meter

if TYPE_CHECKING:
    from torch import Tensor

    from manyhands.models.unet import UNet

COPIES = 4
"""Of each weight, in training with Adam: itself, its gradient, and two moments."""


@cache
def weights(spec: UNet) -> int:
    """How many weights it has."""
    return sum(like.size for like in state_spec_of(spec).values())


@cache
def forward_flops(spec: UNet, batch: int = 1) -> int:
    """The floating-point operations of one forward pass."""
    meter = Meter({})
    with FakeTensorMode(), torch.no_grad():
        network, inputs = _made(spec, batch)
        with meter.work():
            network(*inputs)
    return meter.flops


@cache
def training_flops(spec: UNet) -> int:
    """The floating-point operations of one image in training, forward and backward."""
    meter = Meter({})
    with FakeTensorMode():
        network, inputs = _made(spec, 1)
        with meter.work():
            network(*inputs).sum().backward()
    return meter.flops


@cache
def training_memory(spec: UNet, batch: int) -> int:
    """The bytes that training in float32 holds between forward and backward: weights, Adam's, and activations."""
    with FakeTensorMode():
        network, inputs = _made(spec, batch)
        return 4 * COPIES * weights(spec) + saved_bytes(network, lambda: network(*inputs))[0]


def saved_bytes(network: nn.Module, forward: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """The bytes that a forward pass keeps for the backward pass, each once, beside the weights; and what came out."""
    kept: list[Tensor] = []  # as long as they are here, no other takes their place

    def keep(saved: Tensor) -> Tensor:
        kept.append(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        out = forward()
    own = {weight.untyped_storage()._cdata for weight in network.parameters()}
    sizes = {saved.untyped_storage()._cdata: saved.untyped_storage().nbytes() for saved in kept}
    return sum(size for storage, size in sizes.items() if storage not in own), out


def _made(spec: UNet, batch: int) -> tuple[nn.Module, tuple[Any, ...]]:
    """The network, and a batch for it."""
    shape = batch, spec.channels, spec.size, spec.size
    labels = torch.zeros(batch, dtype=torch.long) if spec.classes else None
    return spec.build(seed=0), (torch.zeros(shape), torch.ones(batch, dtype=torch.long), labels)
