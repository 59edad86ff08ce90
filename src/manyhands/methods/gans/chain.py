"""A network in parts, one after another, each on a device of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from manyhands.models.gan import run_blocks


class Chain:
    """Blocks in parts. All that passes between two parts is what comes out of one, and its gradient on the way back.

    ``borders`` are the numbers of the blocks that parts begin with, but for the first.
    """

    def __init__(self, blocks: Sequence[nn.Module], borders: Sequence[int] = ()) -> None:
        self.parts = [blocks[begins:ends] for begins, ends in pairwise((0, *borders, len(blocks)))]

    def forward(self, x: Tensor, labels: Tensor | None) -> ChainPass:
        """One pass of a batch."""
        crossings = []
        for part in self.parts[:-1]:
            sent = run_blocks(part, x, labels)
            crossings.append((sent, x := sent.detach().requires_grad_()))
        return ChainPass(run_blocks(self.parts[-1], x, labels), crossings)


class ChainPass:
    """What came of a pass: ``out``, and at each border what one part sent and the next one got."""

    def __init__(self, out: Tensor, crossings: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.out, self.crossings = out, crossings

    def backward(self, loss: Tensor) -> None:
        """The gradients of a loss of ``out``, part by part."""
        loss.backward()
        for sent, got in reversed(self.crossings):
            torch.autograd.backward(sent, got.grad)
