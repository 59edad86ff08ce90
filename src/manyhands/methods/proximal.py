"""The proximal term of FedProx: it keeps a silo's weights near those that it started the round with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Mode = Literal["coupled", "decoupled"]


class Proximal:
    """The proximal term mu / 2 ||w - anchor||^2, where the anchor is the weights at the start of the round.

    ``coupled`` adds it to the loss, as published: its gradient, mu (w - anchor), goes through the optimiser, and Adam
    rescales it like every gradient. ``decoupled`` leaves the gradient alone and takes, after each step of the
    optimiser, the exact proximal step w = anchor + (w - anchor) / (1 + rate mu), which is stable for every mu.

    Args:
        network: The network that is trained; its weights now are the anchor.
        mu: The strength of the term.
        mode: ``coupled`` or ``decoupled``.

    References:
        Federated Optimization in Heterogeneous Networks, Li et al., 2020, arXiv 1812.06127
    """

    def __init__(self, network: nn.Module, mu: float, mode: Mode) -> None:
        self.mu, self.mode = mu, mode
        self._weights: list[Tensor] = [weight for weight in network.parameters() if weight.requires_grad]
        self._anchor = [weight.detach().clone() for weight in self._weights]

    def added_to(self, loss: Tensor) -> Tensor:
        """Return the loss plus the term; with ``decoupled`` the term has no gradient and is only reported."""
        pairs = zip(self._weights, self._anchor, strict=True)
        term = self.mu / 2 * torch.stack([(weight - anchor).square().sum() for weight, anchor in pairs]).sum()
        return loss + (term if self.mode == "coupled" else term.detach())

    @torch.no_grad()
    def after_step(self, rate: float) -> None:
        """With ``decoupled``, take the proximal step for a learning rate."""
        if self.mode == "decoupled":
            torch._foreach_lerp_(self._weights, self._anchor, 1 - 1 / (1 + rate * self.mu))
