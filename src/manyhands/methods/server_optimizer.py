"""What the server makes of the mean of the updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from manyhands.spec import Float, Spec
from manyhands.tensors import Tensors, named, prefixed


class ServerOptimizer(Spec, ABC):
    """A step from the shared weights towards the mean of what the silos sent."""

    @abstractmethod
    def step(self, weights: Mapping[str, Tensor], mean: Tensors, memory: Tensors) -> tuple[Tensors, Tensors]:
        """The new weights, for the names in the mean, and the new memory."""


class Momentum(ServerOptimizer):
    """FedAvgM: m = momentum m + (mean - w), w = w + rate m. Rate 1 without momentum is the mean itself.

    References:
        Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, Hsu, Qi, Brown,
            2019, arXiv 1909.06335
    """

    kind: Literal["momentum"] = "momentum"
    rate: Float = Field(default=1.0, gt=0, le=10)
    momentum: Float = Field(default=0.9, ge=0, lt=1)

    def step(self, weights: Mapping[str, Tensor], mean: Tensors, memory: Tensors) -> tuple[Tensors, Tensors]:
        """``memory`` is m."""
        if self.rate == 1 and not self.momentum:
            return mean, memory
        moved = {name: value - weights[name] for name, value in mean.items()}
        m = {name: self.momentum * memory.get(name, torch.zeros(())) + value for name, value in moved.items()}
        return {name: weights[name] + self.rate * value for name, value in m.items()}, memory | m


class ServerAdam(ServerOptimizer):
    """FedAdam: m and v are averages of d = mean - w and of its square, and w = w + rate m / (sqrt(v) + tau).

    As published, no bias is corrected: v begins at tau^2.

    References:
        Adaptive Federated Optimization, Reddi et al., 2021, arXiv 2003.00295
    """

    kind: Literal["adam"] = "adam"
    rate: Float = Field(default=1e-2, gt=0, le=10)
    beta_1: Float = Field(default=0.9, ge=0, lt=1)
    beta_2: Float = Field(default=0.99, ge=0, lt=1)
    tau: Float = Field(default=1e-3, gt=0, le=1)

    def step(self, weights: Mapping[str, Tensor], mean: Tensors, memory: Tensors) -> tuple[Tensors, Tensors]:
        """``memory`` is m and v."""
        m, v, stepped = named(memory, "m."), named(memory, "v."), {}
        for name, value in mean.items():
            d = value - weights[name]
            m[name] = torch.lerp(d, m.get(name, torch.zeros_like(d)), self.beta_1)
            v[name] = torch.lerp(d.square(), v.get(name, torch.full_like(d, self.tau**2)), self.beta_2)
            stepped[name] = weights[name] + self.rate * m[name] / (v[name].sqrt() + self.tau)
        return stepped, prefixed(m, "m.") | prefixed(v, "v.")
