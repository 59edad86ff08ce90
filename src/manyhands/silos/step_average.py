"""The average of a network's weights over the optimiser steps of a round."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from manyhands.tensors import snapshot

if TYPE_CHECKING:
    from torch import nn

    from manyhands.tensors import Tensors


class StepAverage:
    """The weighted mean of the weights after each step of a round: a step counts ``decay`` times as much as the next.

    The weights at the start of the round do not count. So with ``ema`` = ``decay`` to the power of the steps of a
    round, the average over rounds of such averages is the exponential average over all steps of the run.

    Args:
        network: The network that is trained.
        decay: How much a step counts of what the next one counts, below 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay, self._steps = network, decay, 0
        self._mean = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def add(self) -> None:
        """Take in the weights as they are now, after an optimiser step."""
        self._steps += 1
        share = (1 - self._decay) / (1 - self._decay**self._steps)
        torch._foreach_lerp_(list(self._mean.values()), list(self._network.state_dict().values()), share)

    def tensors(self) -> Tensors:
        """Return the mean of each tensor in the state of the network."""
        return snapshot(self._mean)
