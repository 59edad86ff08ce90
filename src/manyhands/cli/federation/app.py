"""The commands of a federation. Each imports what is slow to import itself, so that --help is fast."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from manyhands.cli.federation.admin import fetch, logs, status, stop, submit
from manyhands.cli.federation.approve import approve
from manyhands.cli.federation.job import job
from manyhands.cli.federation.join import join
from manyhands.cli.federation.new import new
from manyhands.cli.federation.prepare import prepare
from manyhands.cli.federation.serve import serve
from manyhands.cli.options import SetOption
from manyhands.errors import RecipeError
from manyhands.federation.log import log

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train between real sites, over a network.")
for command in (new, serve, join, approve, submit, status, stop, fetch, logs, job, prepare):
    app.command()(command)


@app.callback(invoke_without_command=True)
def _demo(
    context: typer.Context,
    recipe: Annotated[
        str,
        typer.Option(
            "--demo",
            metavar="RECIPE",
            help="Try a recipe on this machine: the server and each site are local processes.",
        ),
    ] = "",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the kits, logs and runs of the demo.")] = Path(
        "demo"
    ),
    changes: SetOption = None,
) -> None:
    if context.invoked_subcommand is None and not recipe:
        typer.echo(context.get_help())
        return
    if not find_spec("nvflare"):
        raise RecipeError("a federation needs NVIDIA FLARE: pip install 'manyhands[network]'")
    if not recipe:
        return
    from manyhands.federation.demo import demo, demo_recipe
    from manyhands.runs.shipped import recipe_path

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"--out {out}: is {'not empty' if out.is_dir() else 'a file'}; give a new folder")
    loaded = demo_recipe(recipe_path(recipe), changes or [])
    run = demo(loaded, out, log)
    typer.echo(f"the server's run folder is {run}, its report {run / 'report.html'}")
    typer.echo(f"to evaluate it on the images of the recipe: manyhands evaluate {run} --data recipe")
