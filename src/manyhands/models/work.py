"""What a block of a network costs, from its specification alone: operations of a pass, and the memory of training."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from manyhands.models.block_cost import COPIES, saved_bytes
from manyhands.models.gan import NETWORKS, BatchNorm, Gan, run_blocks


class BlockFlops(NamedTuple):
    """The floating-point operations of one image in a block, forward and backward."""

    forward: float
    backward: float


def block_flops(model: Gan, network: str, *, authors: bool = False) -> tuple[BlockFlops, ...]:
    """Of each block, layer by layer.

    ``authors`` counts as HuSCF-GAN's code does, which takes the output's positions of a transposed convolution
    for those of its input: four times as many where it doubles the side.
    """
    return _block_flops(model, network, authors)


@cache
def _block_flops(model: Gan, network: str, authors: bool) -> tuple[BlockFlops, ...]:
    found = []
    with torch.device("meta"):
        made, x, labels = model.build(seed=0).eval(), *_batch(model, network, 2)
        first = True
        for block in getattr(made, network):
            layers: list[tuple[nn.Module, Tensor, Tensor]] = []
            hooks = [each.register_forward_hook(_kept(layers)) for each in block.modules() if not list(each.children())]
            x = run_blocks([block], x, labels)
            for hook in hooks:
                hook.remove()
            works = []
            for layer, taken, given in layers:
                works.append(_layer_flops(layer, taken, given, first=first, authors=authors))
                first = first and not isinstance(layer, MATRICES)
            found.append(BlockFlops(*(sum(parts) for parts in zip(*works, strict=True))))
    return tuple(found)


MATRICES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
PER_NUMBER: dict[type[nn.Module], BlockFlops] = {
    BatchNorm: BlockFlops(8, 11), nn.GroupNorm: BlockFlops(8, 11),
    nn.ReLU: BlockFlops(1, 2), nn.LeakyReLU: BlockFlops(2, 3), nn.Tanh: BlockFlops(5, 3),
}  # fmt: skip


def _layer_flops(layer: nn.Module, taken: Tensor, given: Tensor, *, first: bool, authors: bool) -> BlockFlops:
    numbers = given[0].numel()
    if isinstance(layer, MATRICES):
        if isinstance(layer, nn.Linear):
            products = layer.in_features * layer.out_features
        else:
            places = taken if isinstance(layer, nn.ConvTranspose2d) and not authors else given
            kernel = layer.kernel_size[0] * layer.kernel_size[1]
            products = layer.in_channels * layer.out_channels * kernel * places[0, 0].numel()
        return BlockFlops(2 * products + numbers, (2 if first else 4) * products + numbers)
    each = PER_NUMBER.get(type(layer), BlockFlops(0, 0))
    return BlockFlops(each.forward * numbers, each.backward * numbers)


@cache
def block_memory(model: Gan, network: str, batch: int) -> tuple[int, ...]:
    """The bytes that each block holds in training in float32: weights, Adam's, and what the backward pass needs."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    found = []
    with FakeTensorMode():
        made, x, labels = model.build(seed=0), *_batch(model, network, batch)
        for block in getattr(made, network):
            count = sum(weight.numel() for weight in block.parameters())
            held, x = saved_bytes(block, partial(run_blocks, [block], x, labels))
            found.append(4 * COPIES * count + held)
    return tuple(found)


PASSES = {"generator": 1, "discriminator": 3}
"""How often each network is run, forward and backward, in an iteration."""


def training_cost(model: Gan, batch: int, kept: Callable[[str, int], bool]) -> tuple[float, int]:
    """The operations of an image in an iteration, and the memory of training, in the blocks that are ``kept``."""
    work, memory = 0.0, 0
    for network in NETWORKS:
        held = block_memory(model, network, batch)
        for number, block in enumerate(block_flops(model, network)):
            if kept(network, number):
                work += PASSES[network] * sum(block)
                memory += held[number]
    return work, memory


def _batch(model: Gan, network: str, count: int) -> tuple[Tensor, Tensor | None]:
    labels = torch.zeros(count, dtype=torch.long) if model.classes else None
    if network == NETWORKS[0]:
        return torch.zeros(count, model.latent), labels
    return torch.zeros(count, model.channels, model.size, model.size), labels


def _kept(layers: list[tuple[nn.Module, Tensor, Tensor]]) -> Callable[..., None]:
    def keep(layer: nn.Module, taken: tuple[Any, ...], given: Tensor) -> None:
        layers.append((layer, taken[0], given))

    return keep
