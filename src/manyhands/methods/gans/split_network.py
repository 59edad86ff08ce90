"""A network that is cut into parts, one after another, each on a device of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from manyhands.models.gan import run_blocks


class Chain:
    """Blocks in parts. Between two parts pass only the activations forward, and their gradient backward.

    Args:
        blocks: The blocks of the network.
        borders: The number of the first block of each part but the first.
    """

    def __init__(self, blocks: Sequence[nn.Module], borders: Sequence[int] = ()) -> None:
        self.parts = [blocks[first:end] for first, end in pairwise((0, *borders, len(blocks)))]

    def forward(self, x: Tensor, labels: Tensor | None) -> ChainPass:
        """Run a batch through all parts."""
        borders = []
        for part in self.parts[:-1]:
            sent = run_blocks(part, x, labels)
            borders.append((sent, x := sent.detach().requires_grad_()))
        return ChainPass(run_blocks(self.parts[-1], x, labels), borders)


class ChainPass:
    """A forward pass of a batch of B images.

    Args:
        output: What came out of the last part, of shape (B, *).
        borders: At each border, what one part sent and what the next part received, both of shape (B, *).
    """

    def __init__(self, output: Tensor, borders: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.output, self.borders = output, borders

    def backward(self, loss: Tensor) -> None:
        """Take the gradients of a loss of the output back, part by part."""
        loss.backward()
        for sent, received in reversed(self.borders):
            torch.autograd.backward(sent, received.grad)
