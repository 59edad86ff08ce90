"""The server's part of a network that is cut into a U: one batch of all silos in each block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from manyhands.models.layer_cut import LayerCut


class MiddlePass:
    """One pass of all silos through the middle, there and back.

    ``seen`` is what came out of the ``watched`` block.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module] | nn.ModuleList,
        cuts: Mapping[str, LayerCut],
        sent: Mapping[str, Tensor],
        watched: int | None = None,
    ) -> None:
        self.watched, self.seen = watched, dict[str, Tensor]()
        self.sent = {silo: x.detach().requires_grad_() for silo, x in sent.items()}
        self.given = self._through(blocks, {silo: cuts[silo] for silo in sent})

    def answers(self) -> dict[str, Tensor]:
        """What each silo gets."""
        return {silo: x.detach() for silo, x in self.given.items()}

    def back(self, gradients: Mapping[str, Tensor], *, learns: bool) -> dict[str, Tensor]:
        """The gradient of what each silo sent; those who say nothing any more count for nothing.

        If the middle ``learns`` from it, its weights get gradients, too.
        """
        silos = list(gradients)
        into = None if learns else [self.sent[silo] for silo in silos]
        torch.autograd.backward([self.given[silo] for silo in silos], [gradients[silo] for silo in silos], inputs=into)
        found = {}
        for silo in silos:
            gradient = self.sent[silo].grad
            assert gradient is not None
            found[silo] = gradient
        return found

    def _through(self, blocks: Sequence[nn.Module] | nn.ModuleList, cuts: Mapping[str, LayerCut]) -> dict[str, Tensor]:
        """Block by block: those whose head ends join the batch, those whose tail begins leave it."""
        inside: dict[str, Tensor] = {}
        left: dict[str, Tensor] = {}
        for number in range(len(blocks)):
            joining = {silo: self.sent[silo] for silo, cut in cuts.items() if cut.head == number - 1}
            inside = {silo: (inside | joining)[silo] for silo in cuts if silo in inside or silo in joining}
            left |= {silo: inside.pop(silo) for silo, cut in cuts.items() if cut.tail == number}
            if inside:
                joined: Tensor = blocks[number](torch.cat(list(inside.values())))
                inside = dict(zip(inside, joined.split([len(x) for x in inside.values()]), strict=True))
            if number == self.watched:
                self.seen = {silo: x.detach() for silo, x in inside.items()}
        return left
