"""What training a network costs, computed from its specification alone, without training or allocating it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from manyhands.models.state_spec import state_spec_of
from manyhands.silos.flops import Meter
from manyhands.silos.local_training import prepare
from manyhands.silos.training import Training

if TYPE_CHECKING:
    from torch import Tensor

    from manyhands.models.base import Denoiser

COPIES = 4
"""How many numbers a weight takes in training with Adam: itself, its gradient, and two moments."""


@cache
def weights(spec: Denoiser) -> int:
    """Return the number of weights of a network."""
    return sum(tensor.size for tensor in state_spec_of(spec).values())


@cache
def forward_flops(spec: Denoiser, batch: int = 1) -> int:
    """Return the floating-point operations of one forward pass of a batch."""
    meter = Meter({})
    with _without_values(spec, batch) as (network, inputs), torch.no_grad(), meter.work():
        network(*inputs)
    return meter.flops


@cache
def training_flops(spec: Denoiser, *, checkpointing: bool = False) -> int:
    """Return the floating-point operations of one image in training, forward and backward.

    Args:
        spec: The specification of the network.
        checkpointing: Whether the backward pass computes features again.
    """
    meter = Meter({})
    with _without_values(spec, 1, checkpointing=checkpointing) as (network, inputs), meter.work():
        network(*inputs).sum().backward()
    return meter.flops


@cache
def training_memory(spec: Denoiser, batch: int, *, checkpointing: bool = False) -> int:
    """Return the bytes of training in float32: weights, gradients, Adam's moments and saved activations.

    Of frozen weights there are the weights alone.

    Args:
        spec: The specification of the network.
        batch: The images that pass through it at once.
        checkpointing: Whether the backward pass computes features again instead of keeping them; those of a block at
            a time then come on top.
    """
    with _without_values(spec, batch, checkpointing=checkpointing) as (network, inputs):
        frozen = sum(weight.numel() for weight in network.parameters() if not weight.requires_grad)
        return 4 * (COPIES * weights(spec) + frozen) + saved_bytes(network, lambda: network(*inputs))[0]


def saved_bytes(network: nn.Module, forward: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Run a forward pass and count the bytes that it keeps for the backward pass, apart from the weights.

    Args:
        network: The network, whose weights are not counted.
        forward: Runs the network and returns its output.

    Returns:
        The bytes, each counted once, and the output.
    """
    kept: list[Tensor] = []  # while they are kept, no other tensor takes their storage

    def keep(saved: Tensor) -> Tensor:
        kept.append(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        out = forward()
    weights_here = {weight.untyped_storage()._cdata for weight in network.parameters()}
    sizes = {saved.untyped_storage()._cdata: saved.untyped_storage().nbytes() for saved in kept}
    return sum(size for storage, size in sizes.items() if storage not in weights_here), out


@contextmanager
def _without_values(
    spec: Denoiser, batch: int, *, checkpointing: bool = False
) -> Iterator[tuple[nn.Module, tuple[Any, ...]]]:
    """Build the network, and a batch for it, of tensors that have shapes and a device, but no values."""
    with torch.device("meta"):
        network = spec.build(seed=0)
    with FakeTensorMode():
        for module in network.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                fake = nn.Parameter(torch.empty(weight.shape), weight.requires_grad)
                module.register_parameter(name, fake)
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        prepare(network, Training(steps=1, checkpointing=checkpointing))
        shape = batch, *spec.noise_shape
        labels = torch.zeros(batch, dtype=torch.long) if spec.classes else None
        yield network, (torch.zeros(shape), torch.ones(batch, dtype=torch.long), labels)
