"""The head of a discriminator in an attacker's hands."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from manyhands.models.gan import BatchNorm, Gan, run_blocks
from manyhands.tensors import Tensors, strip_prefix

if TYPE_CHECKING:
    from manyhands.methods.huscf.guard import Guard


@dataclass(frozen=True)
class Head:
    """The blocks up to the last at home, with weights that the server knows, and the guard behind them if any."""

    model: Gan
    blocks: nn.ModuleList
    guard: Guard | None = None

    @property
    def last(self) -> int:
        """The number of its last block."""
        return len(self.blocks) - 1

    def __call__(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """What it makes of a batch in training, but for the guard's noise."""
        out = run_blocks(self.blocks, x, labels)
        return out if self.guard is None else self.guard.clipped(out)

    def sent(self, x: Tensor, labels: Tensor | None, rng: torch.Generator) -> Tensor:
        """What a silo would send of a batch, with noise of the attacker's own."""
        out = self(x, labels)
        if self.guard is None or not self.guard.noise:
            return out
        return out + self.guard.noise * self.guard.clip * torch.randn(out.shape, generator=rng)

    def settled(self, x: Tensor, labels: Tensor | None) -> Self:
        """The same with the statistics of this batch, whatever it is shown."""
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
        """The same with the running statistics that came with the weights."""
        return replace(self, blocks=deepcopy(self.blocks).eval())


def head_of(model: Gan, weights: Tensors, last: int, guard: Guard | None = None) -> Head:
    """That of a whole discriminator with these weights; what it is shown leaves no trace in it."""
    discriminator = model.build(0).discriminator
    discriminator.load_state_dict(strip_prefix(weights, "discriminator."))
    blocks = discriminator[: last + 1].eval().requires_grad_(False)
    for module in blocks.modules():
        if isinstance(module, BatchNorm):
            module.train()
            module.momentum = 0.0
    return Head(model, blocks, guard)


def unknown(model: Gan, last: int, seed: int, guard: Guard | None = None) -> Head:
    """One with fresh weights, as they come to those who know nothing but how a head is built: a control."""
    return head_of(model, dict(model.build(seed).state_dict()), last, guard)


def _takes_over(norm: nn.Module, given: tuple[Tensor]) -> None:
    """The statistics of a batch become the running ones."""
    assert isinstance(norm, BatchNorm)
    dims = [0, *range(2, given[0].dim())]
    norm.running_mean, norm.running_var = given[0].mean(dims), given[0].var(dims, unbiased=False)
