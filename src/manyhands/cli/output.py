"""Output that several commands share."""

from __future__ import annotations

import textwrap
from pathlib import Path

import typer

from manyhands.cli.console import print_paths, print_table
from manyhands.files.strict_json import finite_json


def show_tradeoff(folder: Path, *, quiet: bool) -> None:
    """Print the table of a sweep over cuts, and where its figure is."""
    from manyhands.report.collafuse_audit import tradeoff_table
    from manyhands.runs.tradeoff import tradeoff

    rows = tradeoff(folder)
    if not quiet:
        print_table(
            tradeoff_table(rows), "For each cut: quality, what one release gives away, and what it costs a silo."
        )
        print_paths({"figure": folder / "tradeoff.png"})


def show_comparison(
    folders: list[Path], out: Path | None = None, by: str = "fid", *, unranked: bool = False, as_json: bool = False
) -> None:
    """Print the table of runs side by side, and which files it was written to."""
    from manyhands.runs.compare import Comparison

    comparison = Comparison(folders, by, unranked=unranked)
    files = [] if out is None else comparison.write(out)
    if as_json:
        typer.echo(
            finite_json(
                {"note": comparison.note(), "runs": comparison.records(), "files": [str(file) for file in files]}
            )
        )
        return
    if verdicts := comparison.verdicts():
        typer.echo("\n".join(wrapped(line, "") for line in verdicts) + "\n")
    print_table(comparison.table(), comparison.note())
    for file in files:
        typer.echo(file)


def show_report(folder: Path, *, as_json: bool) -> None:
    """Print the metrics of a finished run, and where its files are."""
    from manyhands.evaluation import verdict
    from manyhands.report.quality import figures_table, measured_words
    from manyhands.runs.run_folder import RunFolder

    report = RunFolder(folder).report
    if as_json:
        typer.echo(finite_json(report))
        return
    for line in report.get("gives_away", []):
        typer.echo(wrapped(f"warning: {line}", ""), err=True)
    if "evaluation" in report:
        if words := verdict.of_report(report):
            typer.echo(f"{words}\n")
        print_table(figures_table(report), measured_words(report))
        for note in report["evaluation"]["notes"]:
            typer.echo(wrapped(f"warning: {note}", ""), err=True)
    parts = {"samples": folder / "figures" / "samples.png", "report": folder / "report.html", "model": folder / "model"}
    print_paths({name: path for name, path in parts.items() if path.exists()})


def wrapped(words: str, head: str) -> str:
    """Text in lines of 80 columns; the first line begins with ``head``."""
    mark = "#" if head.startswith("#") else ""
    return textwrap.fill(words, 80, initial_indent=head, subsequent_indent=mark.ljust(max(len(head), 4)))
