"""What holds a silo's training near to where it began."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Mode = Literal["coupled", "decoupled"]


class Proximal:
    """The pull of a network towards the weights that it has now: mu / 2 ||w - anchor||^2.

    ``coupled`` adds it to the loss, as published: its gradient, mu (w - anchor), goes through the optimiser, and Adam
    scales it as it scales everything. ``decoupled`` leaves the gradient alone and takes, after each step of the
    optimiser, the exact proximal step of its learning rate: w = anchor + (w - anchor) / (1 + rate mu), which is stable
    for every mu.

    References:
        Federated Optimization in Heterogeneous Networks, Li et al., 2020, arXiv 1812.06127
    """

    def __init__(self, network: nn.Module, mu: float, mode: Mode) -> None:
        self.mu, self.mode = mu, mode
        self._weights: list[Tensor] = list(network.parameters())
        self._anchor = [weight.detach().clone() for weight in self._weights]

    def added_to(self, loss: Tensor) -> Tensor:
        """The loss with the term in it; decoupled, it is told but has no gradient."""
        pairs = zip(self._weights, self._anchor, strict=True)
        term = self.mu / 2 * torch.stack([(weight - anchor).square().sum() for weight, anchor in pairs]).sum()
        return loss + (term if self.mode == "coupled" else term.detach())

    @torch.no_grad()
    def after_step(self, rate: float) -> None:
        """Go back by what the term asks, if that has not been done by its gradient."""
        if self.mode == "decoupled":
            torch._foreach_lerp_(self._weights, self._anchor, 1 - 1 / (1 + rate * self.mu))
