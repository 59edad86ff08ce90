"""The section on the results of attacks: a table, sentences and a figure, for each kind of audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from manyhands.formatting import TextTable
from manyhands.report import collafuse_audit, huscf_audit
from manyhands.report.parts import Picture, picture

Results = Mapping[str, Any]


class KindOfAudit(Protocol):
    """What a module has that shows the results of one kind of audit.

    Args:
        ABOUT: What was attacked and how.
    """

    ABOUT: str

    def table(self, report: Results) -> TextTable:
        """The results."""

    def words(self, report: Results) -> list[str]:
        """Sentences with what the table does not show."""


KINDS: dict[str, KindOfAudit] = {"collafuse": collafuse_audit, "huscf": huscf_audit}
"""Who shows the results, by their ``kind`` in report.json."""


@dataclass(frozen=True)
class Disclosure:
    """The section of the page.

    Args:
        about: What was attacked and how.
        picture: A figure of the results, where there is one.
        table: The results.
        lines: What the table does not show.
    """

    about: str
    picture: Picture | None
    table: TextTable
    lines: Sequence[str]


def table(report: Results) -> TextTable:
    """The results of an audit."""
    return KINDS[report["kind"]].table(report)


def words(report: Results) -> list[str]:
    """Sentences with what the table does not show."""
    return KINDS[report["kind"]].words(report)


def content(report: Results | None, path: Path) -> Disclosure | None:
    """The section of the page, with the figure at ``path`` where there is one; None where nothing was attacked."""
    if not report:
        return None
    figure = picture(path, "what releases give away at each cut") if path.exists() else None
    return Disclosure(KINDS[report["kind"]].ABOUT, figure, table(report), words(report))
