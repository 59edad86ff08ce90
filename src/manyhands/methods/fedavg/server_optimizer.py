"""Server optimizers: how the server moves its weights by the mean of the silos' updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import Field

from manyhands.spec import Float, Spec
from manyhands.tensors import Tensors, add_prefix, strip_prefix


class ServerOptimizer(Spec, ABC):
    """Turns the mean update of the silos into a step of the server's weights."""

    @abstractmethod
    def step(self, moved: Tensors, memory: Tensors) -> tuple[Tensors, Tensors]:
        """Return what is added to the server's weights, and the new state of the optimizer.

        Args:
            moved: The mean difference between the weights that silos sent and those that they had received, by name.
            memory: The state of the optimizer; empty in the first round.
        """


class Momentum(ServerOptimizer):
    """FedAvgM: m = momentum m + d, w = w + rate m, where d is the mean update of the silos.

    References:
        Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, Hsu, Qi, Brown,
            2019, arXiv 1909.06335
    """

    kind: Literal["momentum"] = Field(default="momentum", description="The name of this server optimizer.")
    rate: Float = Field(default=1.0, gt=0, le=10, description="The learning rate of the server.")
    momentum: Float = Field(default=0.9, ge=0, lt=1, description="The decay of past updates; 0 forgets them.")

    def step(self, moved: Tensors, memory: Tensors) -> tuple[Tensors, Tensors]:
        """Return the step and the new m, which is the state."""
        m = {name: self.momentum * memory.get(name, torch.zeros(())) + value for name, value in moved.items()}
        return {name: self.rate * value for name, value in m.items()}, memory | m


class ServerAdam(ServerOptimizer):
    """FedAdam: m and v are averages of d and of its square, and w = w + rate m / (sqrt(v) + tau).

    d is the mean update of the silos. As published, there is no bias correction, and v starts at tau^2.

    References:
        Adaptive Federated Optimization, Reddi et al., 2021, arXiv 2003.00295
    """

    kind: Literal["adam"] = Field(default="adam", description="The name of this server optimizer.")
    rate: Float = Field(default=1e-2, gt=0, le=10, description="The learning rate of the server.")
    beta_1: Float = Field(default=0.9, ge=0, lt=1, description="The decay of the average of updates.")
    beta_2: Float = Field(default=0.99, ge=0, lt=1, description="The decay of the average of squared updates.")
    tau: Float = Field(
        default=1e-3, gt=0, le=1, description="Added to the root of the squared average, against division by nearly 0."
    )

    def step(self, moved: Tensors, memory: Tensors) -> tuple[Tensors, Tensors]:
        """Return the step and the new m and v, which are the state."""
        m, v, step = strip_prefix(memory, "m."), strip_prefix(memory, "v."), {}
        for name, d in moved.items():
            m[name] = torch.lerp(d, m.get(name, torch.zeros_like(d)), self.beta_1)
            v[name] = torch.lerp(d.square(), v.get(name, torch.full_like(d, self.tau**2)), self.beta_2)
            step[name] = self.rate * m[name] / (v[name].sqrt() + self.tau)
        return step, add_prefix(m, "m.") | add_prefix(v, "v.")
