"""The head of a discriminator, as an attacker uses it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from manyhands.models.gan import BatchNorm, Gan, run_blocks
from manyhands.tensors import Tensors, strip_prefix

if TYPE_CHECKING:
    from manyhands.methods.huscf.activation_noise import Guard


@dataclass(frozen=True)
class Head:
    """The discriminator's blocks at the silo, with weights that the server knows, and the guard if there is one."""

    model: Gan
    blocks: nn.ModuleList
    guard: Guard | None = None

    @property
    def last(self) -> int:
        """The index of its last block."""
        return len(self.blocks) - 1

    def __call__(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Compute the activations of a batch (N, C, H, W) in training, without the noise of the guard."""
        out = run_blocks(self.blocks, x, labels)
        return out if self.guard is None else self.guard.clipped(out)

    def sent(self, x: Tensor, labels: Tensor | None, rng: torch.Generator) -> Tensor:
        """Compute what a silo would send for a batch (N, C, H, W), with noise that the attacker draws."""
        out = self(x, labels)
        if self.guard is None or not self.guard.noise:
            return out
        return out + self.guard.noise * self.guard.clip * torch.randn(out.shape, generator=rng)

    def settled(self, x: Tensor, labels: Tensor | None) -> Self:
        """The same head with its batch norms fixed to the statistics of this batch."""
        blocks = deepcopy(self.blocks)
        norms = [module for module in blocks.modules() if isinstance(module, BatchNorm)]
        for norm in norms:
            norm.register_forward_pre_hook(_takes_over)
        with torch.no_grad():
            run_blocks(blocks, x, labels)
        for norm in norms:
            norm._forward_pre_hooks.clear()
            norm.eval()
        return replace(self, blocks=blocks)

    def as_last_known(self) -> Self:
        """The same head with the running statistics that came with the weights."""
        return replace(self, blocks=deepcopy(self.blocks).eval())


def head_of(model: Gan, weights: Tensors, last: int, guard: Guard | None = None) -> Head:
    """The head of a discriminator with these weights; using it does not change its running statistics."""
    discriminator = model.build(0).discriminator
    discriminator.load_state_dict(strip_prefix(weights, "discriminator."))
    blocks = discriminator[: last + 1].eval().requires_grad_(False)
    for module in blocks.modules():
        if isinstance(module, BatchNorm):
            module.train()
            module.momentum = 0.0
    return Head(model, blocks, guard)


def random_head(model: Gan, last: int, seed: int, guard: Guard | None = None) -> Head:
    """A head with random weights, for an attacker who knows the architecture only: a control."""
    return head_of(model, dict(model.build(seed).state_dict()), last, guard)


def _takes_over(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    """Set the running statistics of a batch norm to those of its input."""
    assert isinstance(norm, BatchNorm)
    dims = [0, *range(2, inputs[0].dim())]
    norm.running_mean, norm.running_var = inputs[0].mean(dims), inputs[0].var(dims, unbiased=False)
