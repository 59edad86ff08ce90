"""What the server makes of the mean of the updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import Field

from manyhands.spec import Float, Spec
from manyhands.tensors import Tensors, add_prefix, strip_prefix


class ServerOptimizer(Spec, ABC):
    """What the server makes of ``moved``: how far silos moved, in the mean, from the weights that they held."""

    @abstractmethod
    def step(self, moved: Tensors, memory: Tensors) -> tuple[Tensors, Tensors]:
        """What is added to the server's weights, for the names in ``moved``, and the new memory."""


class Momentum(ServerOptimizer):
    """FedAvgM: m = momentum m + d, w = w + rate m, where d is how far silos moved.

    References:
        Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, Hsu, Qi, Brown,
            2019, arXiv 1909.06335
    """

    kind: Literal["momentum"] = "momentum"
    rate: Float = Field(default=1.0, gt=0, le=10)
    momentum: Float = Field(default=0.9, ge=0, lt=1)

    def step(self, moved: Tensors, memory: Tensors) -> tuple[Tensors, Tensors]:
        """``memory`` is m."""
        m = {name: self.momentum * memory.get(name, torch.zeros(())) + value for name, value in moved.items()}
        return {name: self.rate * value for name, value in m.items()}, memory | m


class ServerAdam(ServerOptimizer):
    """FedAdam: m and v are averages of d and of its square, and w = w + rate m / (sqrt(v) + tau).

    d is how far silos moved. As published, no bias is corrected: v begins at tau^2.

    References:
        Adaptive Federated Optimization, Reddi et al., 2021, arXiv 2003.00295
    """

    kind: Literal["adam"] = "adam"
    rate: Float = Field(default=1e-2, gt=0, le=10)
    beta_1: Float = Field(default=0.9, ge=0, lt=1)
    beta_2: Float = Field(default=0.99, ge=0, lt=1)
    tau: Float = Field(default=1e-3, gt=0, le=1)

    def step(self, moved: Tensors, memory: Tensors) -> tuple[Tensors, Tensors]:
        """``memory`` is m and v."""
        m, v, step = strip_prefix(memory, "m."), strip_prefix(memory, "v."), {}
        for name, d in moved.items():
            m[name] = torch.lerp(d, m.get(name, torch.zeros_like(d)), self.beta_1)
            v[name] = torch.lerp(d.square(), v.get(name, torch.full_like(d, self.tau**2)), self.beta_2)
            step[name] = self.rate * m[name] / (v[name].sqrt() + self.tau)
        return step, add_prefix(m, "m.") | add_prefix(v, "v.")
