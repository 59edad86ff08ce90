"""The commands of a federation. Each imports what is slow to import itself, so that --help is fast."""

from __future__ import annotations

import itertools
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyhands.cli.options import DeviceOption, JsonOption, RecipeArgument, SetOption
from manyhands.errors import KitError, RecipeError, printable
from manyhands.federation.log import MAX_LINE, PeerLog, log
from manyhands.files.strict_json import finite_json

if TYPE_CHECKING:
    from manyhands.federation.kit import Kit

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train between real sites, over a network.")
KitArgument = Annotated[
    Path, typer.Argument(metavar="KIT", help="The folder of this party's kit (see federation new).")
]
AdminOption = Annotated[Path, typer.Option("--kit", metavar="DIR", help="The folder of the admin's kit.")]
RunOption = Annotated[str, typer.Option("--run", metavar="NAME", help="Name of the run. Default: the newest one.")]
ADMIN_KIT = Path("kits/admin")
ANY = "0.0.0.0"


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

    if out.exists() and any(out.iterdir()):
        raise RecipeError(f"--out {out}: is not empty; give a new folder")
    loaded = demo_recipe(recipe_path(recipe), changes or [])
    run = demo(loaded, out, log)
    typer.echo(f"the server's run folder is {run}, its report {run / 'report.html'}")
    typer.echo(f"to evaluate it on the images of the recipe: manyhands evaluate {run} --data recipe")


@app.command()
def new(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The address at which sites reach the server.")],
    sites: Annotated[str, typer.Option(metavar="NAMES", help="Names of the sites, such as a,b,c.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the kits; it must be new or empty.")],
    days: Annotated[
        int, typer.Option(metavar="N", min=1, max=3650, help="Days for which the certificates are valid.")
    ] = 360,
) -> None:
    """Make a kit for each party: certificate, key, server address."""
    from manyhands.federation.kit import new_kits

    page = new_kits(server, [name.strip() for name in sites.split(",") if name.strip()], out, days)
    typer.echo(f"{page}\n\n{page.read_text()}".rstrip())


@app.command()
def serve(
    kit: KitArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the runs.")] = Path("runs"),
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Address to listen on. 0.0.0.0 means all addresses of this machine.")
    ] = ANY,
    port: Annotated[
        int,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Port to listen on, if a router forwards the kits' port to another one. 0: the kits' port.",
        ),
    ] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Run the server, until Ctrl-C.

    If its process crashes or is killed, it is restarted and continues from the last closed round; sites reconnect by
    themselves.
    """
    from manyhands.federation.kit import load_kit
    from manyhands.federation.supervisor import end_with_supervisor, is_worker, supervise

    loaded = load_kit(kit, "server")
    if not is_worker():
        _check_free(host, port or loaded.about.port)
        raise typer.Exit(supervise(sys.argv[1:]))
    end_with_supervisor()
    from manyhands.federation.kit import ADMIN
    from manyhands.federation.server import FederationServer
    from manyhands.federation.site_connections import SiteConnections
    from manyhands.models.state_spec import build_in_subprocess
    from manyhands.silos.device import chosen_device
    from manyhands.silos.memory import release_memory

    build_in_subprocess()
    release_memory(at_once=True)
    out.mkdir(parents=True, exist_ok=True)
    peer_log = PeerLog(log)
    connections = SiteConnections(loaded, [*loaded.about.sites, ADMIN], host, port, peer_log)
    log(f"listening on {host}:{port or loaded.about.port}")
    try:
        server = FederationServer(loaded, connections, out, chosen_device(device), log, peer_log)
        while True:
            server.step()
    finally:
        connections.close()


@app.command()
def join(
    kit: KitArgument,
    data: Annotated[
        str, typer.Option(metavar="DIR", help="The folder of this site's images. Default: data in the policy.")
    ] = "",
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A TOML file that says what runs may do here. Default: each recipe needs an approval."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for what this site keeps; it never leaves the site.")
    ] = Path("site"),
) -> None:
    """Take part as a site, in the runs that its policy allows.

    The site connects to the server, waits for runs, and reconnects when the connection is lost.
    """
    from manyhands.federation.kit import load_kit
    from manyhands.federation.policy import Policy
    from manyhands.federation.supervisor import end_with_supervisor, is_worker, supervise
    from manyhands.runs.recipe import read

    loaded = load_kit(kit, "site")
    rules = read(Policy, policy, "policy") if policy else Policy()
    rules = rules.model_copy(update={"data": data}) if data else rules
    check_data(rules.data, loaded)
    if not is_worker():
        raise typer.Exit(supervise(sys.argv[1:]))
    end_with_supervisor()
    from manyhands.federation.server_connection import ServerConnection
    from manyhands.federation.site import Site
    from manyhands.silos.memory import release_memory

    release_memory(at_once=False)
    about = loaded.about
    try:
        log(f"{about.party} connects to {about.host}:{about.port}: {loaded.server_fingerprint()}")
    except KitError as error:
        if "no server answers" not in str(error):
            raise
        log(f"{error}; trying again until it does")
    connection = ServerConnection(loaded, lambda up: log("connected" if up else "connection lost; reconnecting"))
    try:
        Site(about.party, rules, out, connection, log).work()
    finally:
        connection.close()


def check_data(data: str, kit: Kit) -> None:
    """Refuse to read the images that a recipe names, except in the demo, whose parties are all on this machine."""
    from manyhands.federation.policy import FROM_RECIPE

    if not data:
        raise RecipeError("--data: is missing; give the folder of this site's images")
    if data == FROM_RECIPE and not kit.is_local:
        raise RecipeError(
            f"--data recipe: is only for the demo, with its server on this machine; this server is {kit.about.host}. "
            "Give the folder of this site's images"
        )
    if data != FROM_RECIPE and not Path(data).is_dir():
        raise RecipeError(f"--data {data}: there is no such folder")


@app.command()
def approve(
    site: Annotated[Path, typer.Argument(metavar="SITE", help="The --out folder of federation join.")],
    recipe: Annotated[str, typer.Argument(metavar="HASH", help="The hash of a waiting recipe, or its first digits.")],
    yes: Annotated[bool, typer.Option("--yes", help="Approve without asking.")] = False,
) -> None:
    """Show what a recipe would send from this site, and approve it.

    The approval holds for exactly this recipe: any change of it needs a new one.
    """
    from manyhands.federation.approval import approve as allow
    from manyhands.federation.approval import describe_offer, find_offer

    offer = find_offer(site, recipe)
    for line in describe_offer(site, offer):
        typer.echo(line)
    if not yes and not is_terminal():
        raise RecipeError(
            f"{offer.digest}: cannot ask, because this is no terminal; --yes approves what is shown above"
        )
    if not yes and not typer.confirm("Approve it?"):
        raise RecipeError(f"{offer.digest}: was not approved")
    allow(site, [offer.digest])
    typer.echo(f"approved {offer.digest}")


@app.command()
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
    from manyhands.runs.recipe import load_recipe
    from manyhands.runs.shipped import recipe_path

    loaded = load_recipe(recipe_path(recipe), changes or [])
    with Admin(kit) as admin:
        submitted = admin.submit(loaded, [name for name in sites.split(",") if name])
    if as_json:
        typer.echo(finite_json(submitted))
        return
    typer.echo(f"{submitted['run']}: its hash is {submitted['hash']}")
    typer.echo("a site may have to approve it first; to follow the run: manyhands federation status --watch")


@app.command()
def status(
    kit: AdminOption = ADMIN_KIT,
    watch: Annotated[
        bool, typer.Option("--watch", help="Print the status every 2 seconds, until the run is over.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show which sites are connected, and how far the newest run is."""
    from manyhands.federation.admin import Admin

    with Admin(kit) as admin:
        for _ in itertools.count():
            report = admin.status()
            typer.echo(finite_json(report) if as_json else _status_lines(report))
            if not watch or report["run"].get("stage") in ("ended", "stopped", "failed"):
                break
            time.sleep(2)


@app.command()
def stop(kit: AdminOption = ADMIN_KIT, run: RunOption = "") -> None:
    """Stop a run before it has finished."""
    from manyhands.federation.admin import Admin

    with Admin(kit) as admin:
        typer.echo(f"{admin.stop(run)['run']}: stopped")


@app.command()
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


def is_terminal() -> bool:
    """Whether a person can be asked a question."""
    return sys.stdin.isatty()


def _check_free(host: str, port: int) -> None:
    import socket

    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise KitError(f"{host}:{port}: cannot listen there: {error.strerror or error}") from None


def _status_lines(status: dict[str, Any]) -> str:
    from manyhands.formatting import size_text

    lines = [f"{site:16} {state}" for site, state in status["sites"].items()]  # a server may send anything, too
    if run := status["run"]:
        lines.append(
            f"{run['run']}: {run['stage']}{': ' + run['why'] if run['why'] else ''}, {run['round']} of {run['rounds']} "
            f"rounds, {size_text(run['bytes_up'])} up, {size_text(run['bytes_down'])} down"
        )
    return "\n".join(printable(line, MAX_LINE) for line in lines)
