"""The ledger: counts every byte that is sent, by silo, direction and operation."""

from __future__ import annotations

from typing import Any, Literal

Direction = Literal["up", "down"]


class Ledger:
    """Counts messages and their bytes as encoded, including headers."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Direction, str], list[int]] = {}

    def add(self, silo: str, direction: Direction, op: str, size: int) -> None:
        """Count one message.

        Args:
            silo: The silo that sent or received it.
            direction: "up" to the server, "down" to the silo.
            op: Its operation.
            size: Its bytes as encoded.
        """
        count = self._counts.setdefault((silo, direction, op), [0, 0])
        count[0] += 1
        count[1] += size

    def bytes(self, direction: Direction | None = None, silo: str | None = None) -> int:
        """Sum the bytes in one direction, or in both, of one silo, or of all."""
        return sum(
            count[1]
            for (name, entry_direction, _), count in self._counts.items()
            if (direction is None or entry_direction == direction) and (silo is None or name == silo)
        )

    def entries(self) -> list[dict[str, Any]]:
        """List the counts, sorted: one entry for each silo, direction and operation."""
        return [
            {"silo": silo, "direction": direction, "op": op, "messages": count[0], "bytes": count[1]}
            for (silo, direction, op), count in sorted(self._counts.items())
        ]

    def load(self, entries: list[dict[str, Any]]) -> None:
        """Restore the counts from saved entries."""
        self._counts = {
            (entry["silo"], entry["direction"], entry["op"]): [entry["messages"], entry["bytes"]] for entry in entries
        }
