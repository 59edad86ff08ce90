"""Write a recipe as a job of NVIDIA FLARE."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manyhands.cli.console import print_paths
from manyhands.cli.federation.options import SitesOption, TrackOption, load, names
from manyhands.cli.options import RecipeArgument, SetOption


def job(
    recipe: RecipeArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the job. Default: jobs/<name of the recipe>.")
    ] = None,
    changes: SetOption = None,
    sites: SitesOption = "",
    run: Annotated[
        str,
        typer.Option(metavar="NAME", help="A later job with this name goes on with the run. Default: the recipe's."),
    ] = "",
    track: TrackOption = "",
) -> None:
    """Write a recipe as a job of NVIDIA FLARE.

    The command nvflare job submit -j DIR takes it. No code is in it: each party makes
    its kit ready once with manyhands federation prepare.
    """
    from manyhands.federation.job.folder import write_job

    loaded = load(recipe, changes)
    folder = out or Path("jobs") / loaded.name
    print_paths({"job": write_job(loaded, folder, names(sites), run, names(track))})
    typer.echo(f"to submit it: nvflare job submit -j {folder} --startup-kit KIT, with the kit of a user")
