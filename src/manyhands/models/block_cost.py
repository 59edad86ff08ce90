"""What each block of a GAN costs, computed from its specification: operations of a pass, memory of training."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from manyhands.models.gan import NETWORKS, BatchNorm, Gan, run_blocks
from manyhands.models.network_cost import COPIES, saved_bytes


class BlockFlops(NamedTuple):
    """The floating-point operations of a block for one image, forward and backward."""

    forward: float
    backward: float


def block_flops(model: Gan, network: str, *, authors: bool = False) -> tuple[BlockFlops, ...]:
    """Return the operations of each block of a network, the sum over its layers.

    Args:
        model: The specification of the GAN.
        network: "generator" or "discriminator".
        authors: Whether to count as the code of HuSCF-GAN does, which multiplies the kernel of a transposed
            convolution by its output positions instead of its input positions: four times as many where it doubles
            the side.
    """
    return _block_flops(model, network, authors)


@cache
def _block_flops(model: Gan, network: str, authors: bool) -> tuple[BlockFlops, ...]:
    costs = []
    with torch.device("meta"):
        networks, x, labels = model.build(seed=0).eval(), *_batch(model, network, 2)
        first = True
        for block in getattr(networks, network):
            layers: list[tuple[nn.Module, Tensor, Tensor]] = []
            leaves = [module for module in block.modules() if not list(module.children())]
            hooks = [module.register_forward_hook(_recorder(layers)) for module in leaves]
            x = run_blocks([block], x, labels)
            for hook in hooks:
                hook.remove()
            works = []
            for layer, inputs, outputs in layers:
                works.append(_layer_flops(layer, inputs, outputs, first=first, authors=authors))
                first = first and not isinstance(layer, MATRICES)
            costs.append(BlockFlops(*(sum(parts) for parts in zip(*works, strict=True))))
    return tuple(costs)


MATRICES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
PER_NUMBER: dict[type[nn.Module], BlockFlops] = {
    BatchNorm: BlockFlops(8, 11), nn.GroupNorm: BlockFlops(8, 11),
    nn.ReLU: BlockFlops(1, 2), nn.LeakyReLU: BlockFlops(2, 3), nn.Tanh: BlockFlops(5, 3),
}  # fmt: skip


def _layer_flops(layer: nn.Module, inputs: Tensor, outputs: Tensor, *, first: bool, authors: bool) -> BlockFlops:
    numbers = outputs[0].numel()
    if isinstance(layer, MATRICES):
        if isinstance(layer, nn.Linear):
            products = layer.in_features * layer.out_features
        else:
            positions = inputs if isinstance(layer, nn.ConvTranspose2d) and not authors else outputs
            kernel = layer.kernel_size[0] * layer.kernel_size[1]
            products = layer.in_channels * layer.out_channels * kernel * positions[0, 0].numel()
        return BlockFlops(2 * products + numbers, (2 if first else 4) * products + numbers)
    cost = PER_NUMBER.get(type(layer), BlockFlops(0, 0))
    return BlockFlops(cost.forward * numbers, cost.backward * numbers)


@cache
def block_memory(model: Gan, network: str, batch: int) -> tuple[int, ...]:
    """Return the bytes of each block in training in float32: weights, gradients, Adam's moments, saved activations."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    memory = []
    with FakeTensorMode():
        networks, x, labels = model.build(seed=0), *_batch(model, network, batch)
        for block in getattr(networks, network):
            count = sum(weight.numel() for weight in block.parameters())
            saved, x = saved_bytes(block, partial(run_blocks, [block], x, labels))
            memory.append(4 * COPIES * count + saved)
    return tuple(memory)


PASSES = {"generator": 1, "discriminator": 3}
"""How often an iteration runs each network, forward and backward."""


def training_cost(model: Gan, batch: int, kept: Callable[[str, int], bool]) -> tuple[float, int]:
    """Return the operations of one image in an iteration, and the bytes of memory that training takes.

    Args:
        model: The specification of the GAN.
        batch: The images of a batch.
        kept: Whether a block counts, by network and number.
    """
    work, memory = 0.0, 0
    for network in NETWORKS:
        block_bytes = block_memory(model, network, batch)
        for number, block in enumerate(block_flops(model, network)):
            if kept(network, number):
                work += PASSES[network] * sum(block)
                memory += block_bytes[number]
    return work, memory


def _batch(model: Gan, network: str, count: int) -> tuple[Tensor, Tensor | None]:
    labels = torch.zeros(count, dtype=torch.long) if model.classes else None
    if network == NETWORKS[0]:
        return torch.zeros(count, model.latent), labels
    return torch.zeros(count, model.channels, model.size, model.size), labels


def _recorder(layers: list[tuple[nn.Module, Tensor, Tensor]]) -> Callable[..., None]:
    def record(layer: nn.Module, inputs: tuple[Any, ...], outputs: Tensor) -> None:
        layers.append((layer, inputs[0], outputs))

    return record
