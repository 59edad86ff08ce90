"""The commands of the admin: submit a recipe, see how the run stands, stop it, and fetch its folder."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from manyhands.cli.options import JsonOption, RecipeArgument, SetOption
from manyhands.errors import RecipeError, printable
from manyhands.federation.log import MAX_LINE_CHARACTERS
from manyhands.files.strict_json import finite_json

AdminOption = Annotated[Path, typer.Option("--kit", metavar="DIR", help="The folder of the admin's kit.")]
RunOption = Annotated[str, typer.Option("--run", metavar="NAME", help="Name of the run. Default: the newest one.")]
ADMIN_KIT = Path("kits/admin")


def submit(
    recipe: RecipeArgument,
    kit: AdminOption = ADMIN_KIT,
    changes: SetOption = None,
    sites: Annotated[
        str, typer.Option(metavar="NAMES", help="Train with these sites only, such as a,b. Default: all sites.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Start a run between the sites."""
    from manyhands.federation.admin import Admin
    from manyhands.runs.recipe_file import check_lists_classes, load_recipe
    from manyhands.runs.shipped import recipe_path

    loaded = load_recipe(recipe_path(recipe), changes or [])
    check_lists_classes(loaded.resolved(), recipe)
    with Admin(kit) as admin:
        submitted = admin.submit(loaded, [name for name in sites.split(",") if name])
    if as_json:
        typer.echo(finite_json(submitted))
        return
    typer.echo(f"{submitted['run']}: its hash is {submitted['hash']}")
    typer.echo("a site may have to approve it first; to follow the run: manyhands federation status --watch")


def status(
    kit: AdminOption = ADMIN_KIT,
    watch: Annotated[
        bool, typer.Option("--watch", help="Print the status every 2 seconds, until the run is over.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show which sites are connected, and how far the newest run is."""
    from manyhands.federation.admin import Admin
    from manyhands.federation.run_session import OVER

    with Admin(kit) as admin:
        for _ in itertools.count():
            report = admin.status()
            if as_json:
                typer.echo(finite_json(report))
            else:
                _show_status(report)
            if not watch or report["run"].get("stage") in OVER:
                break
            time.sleep(2)


def stop(kit: AdminOption = ADMIN_KIT, run: RunOption = "") -> None:
    """Stop a run before it has finished."""
    from manyhands.federation.admin import Admin

    with Admin(kit) as admin:
        typer.echo(f"{admin.stop(run)['run']}: stopped")


def fetch(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to put the run folder; it must not exist yet.")],
    kit: AdminOption = ADMIN_KIT,
    run: RunOption = "",
) -> None:
    """Download a run folder from the server: model, journal, report."""
    from manyhands.federation.admin import Admin

    if out.exists():
        raise RecipeError(f"--out {out}: exists already; give a new folder")
    with Admin(kit) as admin:
        typer.echo(str(admin.fetch(run, out)))


def _show_status(status: dict[str, Any]) -> None:
    """Print the state of each site and of the run; every text is made safe, for a server may send anything."""
    from manyhands.cli.console import print_table
    from manyhands.formatting import TextTable, size_text

    sites = [
        [printable(site, MAX_LINE_CHARACTERS), printable(str(state), MAX_LINE_CHARACTERS)]
        for site, state in status["sites"].items()
    ]
    print_table(TextTable((), sites, left=2))
    if run := status["run"]:
        line = (
            f"{run['run']}: {run['stage']}{': ' + run['why'] if run['why'] else ''}, {run['round']} of {run['rounds']} "
            f"rounds, {size_text(run['bytes_up'])} up, {size_text(run['bytes_down'])} down"
        )
        typer.echo(printable(line, MAX_LINE_CHARACTERS))
