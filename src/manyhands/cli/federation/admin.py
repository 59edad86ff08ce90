"""The commands of the admin: submit a recipe, see how runs stand, stop one, read its log, fetch its folder."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from manyhands.cli.federation.options import SitesOption, TrackOption, load, names
from manyhands.cli.options import JsonOption, RecipeArgument, SetOption
from manyhands.errors import RecipeError, printable
from manyhands.federation.log import MAX_LINE_CHARACTERS
from manyhands.files.strict_json import finite_json

AdminOption = Annotated[Path, typer.Option("--kit", metavar="DIR", help="The folder of the admin's kit.")]
RunOption = Annotated[
    str, typer.Option("--run", metavar="NAME", help="Name of the run or id of its job. Default: the newest that fits.")
]
ADMIN_KIT = Path("kits/admin")
WATCH_SECONDS = 2


def submit(
    recipe: RecipeArgument,
    kit: AdminOption = ADMIN_KIT,
    changes: SetOption = None,
    sites: SitesOption = "",
    run: Annotated[
        str,
        typer.Option(metavar="NAME", help="The name of a run that was stopped or has failed, to go on with it."),
    ] = "",
    track: TrackOption = "",
    as_json: JsonOption = False,
) -> None:
    """Start a run between the sites, as a job of FLARE."""
    from manyhands.federation.admin import Admin
    from manyhands.federation.policy import recipe_hash, recipe_text

    loaded = load(recipe, changes)
    with Admin(kit) as admin:
        name, job = admin.submit(loaded, names(sites), run, names(track))
    submitted = {"job": job, "run": name, "hash": recipe_hash(recipe_text(loaded))}
    if as_json:
        typer.echo(finite_json(submitted))
        return
    if name not in (run, loaded.name):
        typer.echo(f"a run of the name {loaded.name} has ended or is not over; this is another one")
    typer.echo(f"{name}: is job {job}; the hash of its recipe is {submitted['hash']}")
    typer.echo("a site may have to approve it first; to follow the run: manyhands federation status --watch")


def status(
    kit: AdminOption = ADMIN_KIT,
    watch: Annotated[
        bool, typer.Option("--watch", help="Print the status every 2 seconds, until the newest run is over.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the connected sites, and how far each run is."""
    from manyhands.federation.admin import Admin, is_over

    with Admin(kit) as admin:
        for _ in itertools.count():
            report = admin.status()
            if as_json:
                typer.echo(finite_json(report))
            else:
                _show_status(report)
            if not watch or not report["jobs"] or is_over(report["jobs"][-1]):
                break
            time.sleep(WATCH_SECONDS)


def stop(kit: AdminOption = ADMIN_KIT, run: RunOption = "") -> None:
    """Stop a run before it has finished.

    Submitting it again goes on from its last closed round.
    """
    from manyhands.federation.admin import Admin

    with Admin(kit) as admin:
        typer.echo(f"{printable(admin.stop(run))}: stopped")


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


def logs(
    kit: AdminOption = ADMIN_KIT,
    run: RunOption = "",
    site: Annotated[
        str, typer.Option("--site", metavar="NAME", help="The server, or a site that streams its log.")
    ] = "server",
) -> None:
    """Print the log of a run at the server or at a site."""
    from manyhands.federation.admin import Admin

    with Admin(kit) as admin:
        for line in admin.log(run, site).splitlines():
            typer.echo(printable(line, MAX_LINE_CHARACTERS))


def _show_status(status: dict[str, Any]) -> None:
    """Print the state of each job and site; every text is made safe, for a server may send anything."""
    from manyhands.cli.console import print_table
    from manyhands.formatting import TextTable

    connected = ", ".join(status["sites"]) or "none"
    typer.echo(printable(f"connected sites: {connected}", MAX_LINE_CHARACTERS))
    for job in status["jobs"]:
        typer.echo(printable(_job_line(job), MAX_LINE_CHARACTERS))
        sites = job.get("sites", {})
        rows = [[printable(str(text), MAX_LINE_CHARACTERS) for text in pair] for pair in sites.items()]
        if rows:
            print_table(TextTable((), rows, left=2))


def _job_line(job: dict[str, Any]) -> str:
    """Return a line about a job, with how far its run is if it is running."""
    from manyhands.formatting import duration_text, size_text

    run = job.get("run")
    state = run or job
    parts = [f"{job['name']} ({job['job'][:8]}): {state['stage']}{': ' + state['why'] if state['why'] else ''}"]
    if run is None:
        return parts[0] + (", the server computes" if job.get("busy") else "")
    parts.append(f"{run['round']} of {run['rounds']} rounds")
    if run["loss"] is not None:
        parts.append(f"loss {run['loss']:.4f}")
    parts.append(f"{size_text(run['bytes_up'])} up, {size_text(run['bytes_down'])} down")
    if run["seconds_left"]:
        parts.append(f"about {duration_text(run['seconds_left'])} left")
    return ", ".join(parts)
