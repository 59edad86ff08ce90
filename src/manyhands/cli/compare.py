from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manyhands.cli.options import JsonOption
from manyhands.cli.output import show_comparison
from manyhands.errors import RecipeError


def compare(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="The folders of two or more finished runs.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the table (Markdown, CSV, JSON) and the figures to this folder."),
    ] = None,
    by: Annotated[str, typer.Option(metavar="METRIC", help="Rank the runs by this metric.")] = "fid",
    unranked: Annotated[
        bool,
        typer.Option("--unranked", help="Compare runs that were evaluated in different ways, without ranking them."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put the metrics of runs side by side, best first.

    Runs that differ only in their seed become one column, with mean and standard deviation.
    """
    if len(run_folders) < 2:
        raise RecipeError(f"compare: needs two or more runs, but only {run_folders[0]} is given")
    show_comparison(run_folders, out, by, unranked=unranked, as_json=as_json)
