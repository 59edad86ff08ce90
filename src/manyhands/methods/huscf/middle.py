"""The server's part of a network that is cut into a U: in each block, the batches of all silos are joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from manyhands.models.layer_cut import LayerCut


class MiddlePass:
    """One pass of the batches of all silos through the middle, forward and backward.

    ``outputs`` is what each silo's tail goes on from; ``watched_output`` is what came out of the watched block.

    Args:
        blocks: All blocks of the network; the server uses those between each silo's head and tail.
        cuts: The cut of each silo.
        sent: The activations of each silo's head, of shape (B, C, H, W).
        watched: The number of a block whose output is kept, or None.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module] | nn.ModuleList,
        cuts: Mapping[str, LayerCut],
        sent: Mapping[str, Tensor],
        watched: int | None = None,
    ) -> None:
        self.watched, self.watched_output = watched, dict[str, Tensor]()
        self.inputs = {silo: x.detach().requires_grad_() for silo, x in sent.items()}
        self.outputs = self._through(blocks, {silo: cuts[silo] for silo in sent})

    def answers(self) -> dict[str, Tensor]:
        """Return what each silo is sent: the outputs, detached."""
        return {silo: x.detach() for silo, x in self.outputs.items()}

    def backward(self, gradients: Mapping[str, Tensor], *, learns: bool) -> dict[str, Tensor]:
        """Return the gradient at what each silo sent. A silo that sends no gradient counts for nothing.

        Args:
            gradients: The gradient of each silo's loss at its output.
            learns: Whether the weights of the middle get gradients, too.
        """
        silos = list(gradients)
        into = None if learns else [self.inputs[silo] for silo in silos]
        torch.autograd.backward(
            [self.outputs[silo] for silo in silos], [gradients[silo] for silo in silos], inputs=into
        )
        answers = {}
        for silo in silos:
            gradient = self.inputs[silo].grad
            assert gradient is not None
            answers[silo] = gradient
        return answers

    def _through(self, blocks: Sequence[nn.Module] | nn.ModuleList, cuts: Mapping[str, LayerCut]) -> dict[str, Tensor]:
        """Go block by block: a silo joins the batch where its head ends, and leaves it where its tail begins."""
        inside: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        for number in range(len(blocks)):
            joining = {silo: self.inputs[silo] for silo, cut in cuts.items() if cut.head == number - 1}
            inside = {silo: (inside | joining)[silo] for silo in cuts if silo in inside or silo in joining}
            outputs |= {silo: inside.pop(silo) for silo, cut in cuts.items() if cut.tail == number}
            if inside:
                joined: Tensor = blocks[number](torch.cat(list(inside.values())))
                inside = dict(zip(inside, joined.split([len(x) for x in inside.values()]), strict=True))
            if number == self.watched:
                self.watched_output = {silo: x.detach() for silo, x in inside.items()}
        return outputs
