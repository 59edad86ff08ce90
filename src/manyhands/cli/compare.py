from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyhands.cli.options import JsonOption
from manyhands.cli.output import show_comparison

if TYPE_CHECKING:
    pass


def compare(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="The folders of two runs or more.")],
    out: Annotated[Path | None, typer.Option(help="Where the table (md, csv, json) and the figures go.")] = None,
    by: Annotated[str, typer.Option(help="The figure that ranks.")] = "fid",
    unranked: Annotated[
        bool, typer.Option("--unranked", help="Show runs of different protocols, without a rank.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put runs side by side; runs that differ in their seed alone are one column."""
    show_comparison(run_folders, out, by, unranked=unranked, as_json=as_json)
