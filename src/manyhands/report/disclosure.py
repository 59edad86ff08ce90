"""The section on what attacks found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manyhands.formatting import TextTable
from manyhands.report.parts import Picture


@dataclass(frozen=True)
class Disclosure:
    """What was attacked and how, a figure of it, the results in a table, and what the table does not show."""

    about: str
    picture: Picture | None
    table: TextTable
    lines: Sequence[str]
