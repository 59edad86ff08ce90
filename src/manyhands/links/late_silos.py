"""How long each silo has kept the others waiting in a round. After one deadline in all, it is left out of the round."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass
class LateSilos:
    """The time that each silo has cost the others in the open round: one deadline in all, however it does so.

    Args:
        deadline: The seconds after which a silo is left out of a round.
        seconds: The seconds that each silo has cost the others.
    """

    deadline: float = 600.0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, silo: str, seconds: float) -> bool:
        """Add what a silo cost the others; return whether its deadline is used up."""
        self.seconds[silo] = self.seconds.get(silo, 0.0) + seconds
        return self.seconds[silo] >= self.deadline

    def add_barrier(self, arrived: Mapping[str, float]) -> None:
        """Add by how much each silo of a barrier came later than half of them."""
        half = _half_time(arrived.values(), len(arrived))
        for silo, time in arrived.items():
            if half is not None and time > half:
                self.add(silo, time - half)

    def leave_out(
        self, silent: Collection[str], arrived: Collection[float], opened: float, now: float
    ) -> dict[str, str]:
        """Return the silent silos that are left out now, and why.

        Args:
            silent: The silos that have not called at this barrier.
            arrived: When the others called.
            opened: When the barrier was opened.
            now: The time in seconds.
        """
        half = _half_time(arrived, len(arrived) + len(silent))
        left_out = {}
        for silo in silent:
            if now >= opened + self.deadline:
                left_out[silo] = f"silent at the deadline of {self.deadline:g} s"
            elif half is not None and self.seconds.get(silo, 0.0) + now - half >= self.deadline:
                left_out[silo] = f"kept the others waiting for {self.deadline:g} s in this round"
        self.seconds |= dict.fromkeys(left_out, self.deadline)
        return left_out

    def clear(self) -> None:
        """Begin the next round, in which no silo has cost anything."""
        self.seconds.clear()


def _half_time(times: Collection[float], count: int) -> float | None:
    """Return when half of ``count`` silos had called, or None if they have not."""
    half = (count + 1) // 2
    return sorted(times)[half - 1] if 0 < half <= len(times) else None
