"""Every byte that crossed, by silo, direction and operation."""

from __future__ import annotations

from typing import Any, Literal

Direction = Literal["up", "down"]


class Ledger:
    """Counts messages and bytes as encoded, headers included."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Direction, str], list[int]] = {}

    def add(self, silo: str, direction: Direction, op: str, size: int) -> None:
        """Enter one message."""
        count = self._counts.setdefault((silo, direction, op), [0, 0])
        count[0] += 1
        count[1] += size

    def bytes(self, direction: Direction | None = None, silo: str | None = None) -> int:
        """The bytes that went in a direction, of one silo, or of all."""
        return sum(
            count[1]
            for (name, way, _), count in self._counts.items()
            if (direction is None or way == direction) and (silo is None or name == silo)
        )

    def entries(self) -> list[dict[str, Any]]:
        """One row for each silo, direction and operation, in order."""
        return [
            {"silo": silo, "direction": way, "op": op, "messages": count[0], "bytes": count[1]}
            for (silo, way, op), count in sorted(self._counts.items())
        ]

    def load(self, entries: list[dict[str, Any]]) -> None:
        """Go on from entries that were kept."""
        self._counts = {(e["silo"], e["direction"], e["op"]): [e["messages"], e["bytes"]] for e in entries}
