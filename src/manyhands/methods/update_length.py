"""How long the updates of a round are: one that is far longer than the others would end their run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median_low
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from manyhands.errors import Reason, Refused
from manyhands.spec import Float
from manyhands.tensors import Tensors

LENGTHS = "lengths."
"""Where a server's state has them."""
MAX_RATIO = 20.0
MaxUpdateRatio = Annotated[Float, Field(ge=0)]
"""An update longer than the weights and than so many times the median of the last round is refused; 0: none is."""


class UpdateLengths:
    """The lengths of the updates that were taken, and whose moved the mean most.

    The length is the root mean square of what silos move the weights by, so that a half of the network is held
    against a half. Before the first round has ended an update is held against the weights themselves; later, too, one
    that is no longer than they are is taken: others that hardly move, on purpose or for want of images, refuse nobody.
    After ``leave_out_mover`` one silo, ``left_out``, takes no part in the next round.
    """

    def __init__(self, max_ratio: float) -> None:
        self.max_ratio = max_ratio
        self.mover = self.left_out = ""
        self._last: list[float] = []
        self._open: dict[str, tuple[float, float]] = {}
        self._stays_out = False

    def check(
        self, silo: str, update: Mapping[str, Tensor], held: Mapping[str, Tensor], weight: float, *, relative: bool
    ) -> None:
        """Refuse an update that is too long; ``held`` is what the silo was given, which ``relative`` updates lack."""
        self.check_takes_part(silo)
        if not self.max_ratio:
            return
        names = sorted(update)  # in one order, however they travelled: the last bits of a sum depend on it
        length = root_mean_square(update[name] if relative else update[name] - held[name] for name in names)
        usual = median_low(self._last) if self._last else 0.0
        if length > self.max_ratio * usual:
            self._check_against_weights(length, usual, root_mean_square(held[name] for name in names))
        self._open[silo] = length, weight * length

    def _check_against_weights(self, length: float, usual: float, own: float) -> None:
        """Refuse it, unless the others hardly moved: what is no longer than the weights themselves breaks nobody."""
        limit = max(self.max_ratio * usual, own) if usual else self.max_ratio * own
        if limit and length > limit:
            median = f"the median of the last round, and {length / own:,.1f} times as long as " if usual and own else ""
            raise Refused(
                Reason.TOO_LONG,
                f"the update is {length / (usual or own):,.0f} times as long as {median}the weights themselves; "
                f"max_update_ratio is {self.max_ratio:g}",
            )

    def check_takes_part(self, silo: str) -> None:
        """Refuse what comes from a silo that is left out of this round."""
        if silo == self.left_out:
            raise Refused(Reason.LEFT_OUT, f"{silo} takes no part in this round: its last update moved the mean most")

    def close(self) -> None:
        """The round has ended: what was taken in it is what the next one is held against."""
        if self._open:
            self._last = sorted(length for length, _ in self._open.values())
            self.mover = max(sorted(self._open), key=lambda silo: self._open[silo][1])
        self._open = {}
        self.left_out, self._stays_out = self.left_out if self._stays_out else "", False

    def leave_out_mover(self) -> str:
        """Leave whoever moved the mean most out of the round after this one; its name."""
        self.left_out, self.mover, self._stays_out = self.mover, "", True
        return self.left_out

    def state_dict(self) -> Tensors:
        """What the next round depends on."""
        kept: Tensors = {"last": torch.tensor(self._last, dtype=torch.float64)} if self._last else {}
        names = {"mover": self.mover, "left_out": self.left_out}
        return kept | {
            name: torch.tensor(list(silo.encode()), dtype=torch.uint8) for name, silo in names.items() if silo
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a closed round."""
        empty = torch.empty(0, dtype=torch.uint8)
        self._last, self._open, self._stays_out = state.get("last", empty).tolist(), {}, False
        self.mover, self.left_out = (bytes(state.get(name, empty).tolist()).decode() for name in ("mover", "left_out"))


def root_mean_square(tensors: Iterable[Tensor]) -> float:
    """Of all numbers together; counters, which are whole numbers, are left out."""
    total, count = 0.0, 0
    for tensor in tensors:
        if tensor.is_floating_point():
            total += float(tensor.square().sum(dtype=torch.float64))  # squares are of at most 1.5e10
            count += tensor.numel()
    return math.sqrt(total / count) if count else 0.0
