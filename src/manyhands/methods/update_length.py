"""The lengths of the updates of a round: the server refuses one that is far longer than the others."""

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
"""The prefix of their entries in a server's state."""
MAX_RATIO = 20.0
MaxUpdateRatio = Annotated[
    Float,
    Field(
        ge=0,
        description="The server refuses an update that is longer (in root mean square) than the weights themselves and "
        "than this many times the median update of the last round; 0 refuses none that is finite.",
    ),
]


class UpdateLengths:
    """The lengths of the updates that the server accepted, and which silo moved the mean most.

    A length is the root mean square of the change of the weights, so that silos that send different parts of a network
    compare. In the first round an update is compared with the weights themselves. Later, too, an update no longer than
    the weights is accepted, so that silos that hardly move, on purpose or for lack of images, get nobody refused.
    After ``leave_out_mover`` one silo, ``left_out``, takes no part in the next round.

    Args:
        max_ratio: How many times the median of the last round an update may be long; 0 for no limit.
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
        """Raise ``Refused`` for an update that is too long.

        Args:
            silo: The silo that sends it.
            update: The weights that it sends, or their change.
            held: The weights that the silo started from.
            weight: The weight of the silo in the mean.
            relative: Whether ``update`` is the change of the weights.
        """
        self.check_takes_part(silo)
        if not self.max_ratio:
            return
        names = sorted(update)  # in a fixed order: the last bits of a sum depend on it
        length = root_mean_square(update[name] if relative else update[name] - held[name] for name in names)
        usual = median_low(self._last) if self._last else 0.0
        if length > self.max_ratio * usual:
            self._check_against_weights(length, usual, root_mean_square(held[name] for name in names))
        self._open[silo] = length, weight * length

    def _check_against_weights(self, length: float, usual: float, own: float) -> None:
        """Refuse it, unless it is no longer than the weights themselves."""
        limit = max(self.max_ratio * usual, own) if usual else self.max_ratio * own
        if limit and length > limit:
            median = f"the median of the last round, and {length / own:,.1f} times as long as " if usual and own else ""
            raise Refused(
                Reason.TOO_LONG,
                f"the update is {length / (usual or own):,.0f} times as long as {median}the weights themselves; "
                f"max_update_ratio is {self.max_ratio:g}",
            )

    def check_takes_part(self, silo: str) -> None:
        """Raise ``Refused`` for a silo that is left out of this round."""
        if silo == self.left_out:
            raise Refused(
                Reason.LEFT_OUT, f"{silo} takes no part in this round, because its last update moved the mean most"
            )

    def close(self) -> None:
        """End the round: the next one is compared with its updates."""
        if self._open:
            self._last = sorted(length for length, _ in self._open.values())
            self.mover = max(sorted(self._open), key=lambda silo: self._open[silo][1])
        self._open = {}
        self.left_out, self._stays_out = self.left_out if self._stays_out else "", False

    def leave_out_mover(self) -> str:
        """Leave the silo that moved the mean most out of the next round, and return its name."""
        self.left_out, self.mover, self._stays_out = self.mover, "", True
        return self.left_out

    def state_dict(self) -> Tensors:
        """Return what the next round depends on."""
        kept: Tensors = {"last": torch.tensor(self._last, dtype=torch.float64)} if self._last else {}
        names = {"mover": self.mover, "left_out": self.left_out}
        return kept | {
            name: torch.tensor(list(silo.encode()), dtype=torch.uint8) for name, silo in names.items() if silo
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of ``state_dict``."""
        empty = torch.empty(0, dtype=torch.uint8)
        self._last, self._open, self._stays_out = state.get("last", empty).tolist(), {}, False
        self.mover, self.left_out = (bytes(state.get(name, empty).tolist()).decode() for name in ("mover", "left_out"))


def root_mean_square(tensors: Iterable[Tensor]) -> float:
    """Return the root mean square of all numbers; integer tensors, which are counters, are left out."""
    total, count = 0.0, 0
    for tensor in tensors:
        if tensor.is_floating_point():
            total += float(tensor.square().sum(dtype=torch.float64))  # squares are of at most 1.5e10
            count += tensor.numel()
    return math.sqrt(total / count) if count else 0.0
