"""What several commands print."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from manyhands.files.strict_json import kept_json

if TYPE_CHECKING:
    pass


def show_trade(folder: Path, *, quiet: bool) -> None:
    """The table and the picture of a sweep over cuts."""
    from manyhands.report.collafuse_audit import trade_rows
    from manyhands.runs.audit import trade
    from manyhands.runs.progress import print_table

    rows = trade(folder)
    if not quiet:
        print_table(trade_rows(rows), "What each cut reaches, gives away (one release) and costs a silo.")
        typer.echo(f"figure   {folder / 'trade.png'}")


def show_comparison(
    folders: list[Path], out: Path | None = None, by: str = "fid", *, unranked: bool = False, as_json: bool = False
) -> None:
    """The table of runs side by side, and where it is written."""
    from manyhands.runs.compare import Comparison
    from manyhands.runs.progress import print_table

    found = Comparison(folders, by, unranked=unranked)
    files = [] if out is None else found.write(out)
    if as_json:
        typer.echo(kept_json({"note": found.note(), "runs": found.records(), "files": [str(file) for file in files]}))
        return
    if verdicts := found.verdicts():
        typer.echo("\n".join(wrapped(line, "") for line in verdicts) + "\n")
    print_table(found.table(), found.note())
    for file in files:
        typer.echo(file)


def show_ended(folder: Path, *, as_json: bool) -> None:
    """The figures of a finished run, and where its parts lie."""
    from manyhands.evaluation import verdict
    from manyhands.report.page import figures_table, measured_words
    from manyhands.runs.progress import print_table
    from manyhands.runs.run_folder import RunFolder

    report = RunFolder(folder).report
    if as_json:
        typer.echo(kept_json(report))
        return
    for line in report.get("gives_away", []):
        typer.echo(wrapped(f"warning: {line}", ""), err=True)
    if "evaluation" in report:
        if words := verdict.of_report(report):
            typer.echo(f"{words}\n")
        print_table(figures_table(report), measured_words(report))
        for note in report["evaluation"]["notes"]:
            typer.echo(wrapped(f"warning: {note}", ""), err=True)
    parts = {"samples": "figures/samples.png", "report": "report.html", "model": "model"}
    for name, part in parts.items():
        if (folder / part).exists():
            typer.echo(f"{name:9}{folder / part}")


def wrapped(words: str, head: str) -> str:
    """Words after a head, in lines of 80 columns."""
    mark = "#" if head.startswith("#") else ""
    return textwrap.fill(words, 80, initial_indent=head, subsequent_indent=mark.ljust(max(len(head), 4)))
