"""The section on what left the silos, what can be computed from it, and how many bytes it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manyhands.formatting import TextTable, names_text, size_text
from manyhands.messages.outgoing.summary import NO_REASSURANCE


@dataclass(frozen=True)
class OperationRow:
    """An operation of the plan, in words.

    Args:
        name: The name of the operation.
        often: How often it happens.
        description: What it does.
        facts: The names of the facts that a silo sends with it.
    """

    name: str
    often: str
    description: str
    facts: str


@dataclass(frozen=True)
class Outgoing:
    """The kinds of things that left, the operations, their bytes as planned and as sent, and what was never sent.

    Args:
        kinds: The kinds of things that left.
        operations: The operations of the plan.
        planned: The bytes as planned.
        bytes: The bytes as sent.
        never_sent: What was never sent.
    """

    kinds: TextTable
    operations: Sequence[OperationRow]
    planned: str
    bytes: TextTable
    never_sent: str


def outgoing(report: Mapping[str, Any], ledger: Sequence[Mapping[str, Any]]) -> Outgoing:
    """What left the silos of a run."""
    heads = ["what left a silo", "how often", "what can be computed from it", "proven guarantee", "which silos"]
    rows = [
        [row["what"], row["often"], row["computed"], row["guarantee"], _which(row["silos"], report["silos"])]
        for row in report["leaves"]
    ]
    operations = [
        OperationRow(name, row["often"], row["description"], ", ".join(row["facts"]))
        for name, row in report["operations"].items()
    ]
    return Outgoing(
        TextTable(heads, rows, left=5),
        operations,
        "; ".join(report.get("cost_lines", ())),
        _bytes(ledger, max(len(report["silos"]), 1)),
        f"{', '.join(report['never_sent'])}; {NO_REASSURANCE}",
    )


def _which(silos: Sequence[str], all_silos: Mapping[str, int]) -> str:
    """The names of silos, or "every silo"."""
    if len(silos) == len(all_silos):
        return "every silo" if len(silos) > 1 else silos[0]
    return names_text(silos)


def _bytes(ledger: Sequence[Mapping[str, Any]], silos: int) -> TextTable:
    """The messages and bytes of each operation and direction."""
    totals: dict[tuple[str, str], list[int]] = {}
    for entry in ledger:
        total = totals.setdefault((entry["op"], entry["direction"]), [0, 0])
        total[0] += entry["messages"]
        total[1] += entry["bytes"]
    rows = [
        [op, direction, f"{messages:,}", size_text(size), size_text(size / silos)]
        for (op, direction), (messages, size) in sorted(totals.items())
    ]
    return TextTable(["operation", "direction", "messages", "total", "per silo"], rows, left=2)
