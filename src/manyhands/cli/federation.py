"""The commands of a federation. Everything heavy is imported in the command that needs it."""

from __future__ import annotations

import itertools
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyhands.errors import KitError, RecipeError, plain
from manyhands.federation.saying import LINE, Seldom, say
from manyhands.files.strict_json import kept_json

if TYPE_CHECKING:
    from manyhands.federation.kit import Kit

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Train between real sites, over a network."
)
KitArgument = Annotated[Path, typer.Argument(metavar="KIT", help="The folder of this party's kit.")]
LeadOption = Annotated[Path, typer.Option("--kit", help="The lead's kit.")]
RunOption = Annotated[str, typer.Option("--run", help="The run; the newest if not given.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]
LEAD = Path("kits/lead")
ANY = "0.0.0.0"


@app.callback(invoke_without_command=True)
def _demo(
    context: typer.Context,
    recipe: Annotated[
        str, typer.Option("--demo", metavar="RECIPE", help="Run it between processes of this machine, on loopback.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Where the demo puts kits, logs and run folders.")] = Path("demo"),
    changes: Annotated[list[str] | None, typer.Option("--set", help="Change a field of the demo's recipe.")] = None,
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
        raise RecipeError(f"--out {out}: is not empty")
    told = demo_recipe(recipe_path(recipe), changes or [])
    run = demo(told, out, say)
    typer.echo(f"the server's run folder: {run}; its report: {run / 'report.html'}")
    typer.echo(f"to measure it, on what the recipe dealt: manyhands evaluate {run} --data recipe")


@app.command()
def new(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the sites will reach the server.")],
    sites: Annotated[str, typer.Option(help="Their names, such as a,b,c.")],
    out: Annotated[Path, typer.Option(help="The folder of all kits.")],
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the kits are valid.")] = 360,
) -> None:
    """Make a kit for each party: certificates, and where the server is."""
    from manyhands.federation.kit import new_kits

    page = new_kits(server, [name.strip() for name in sites.split(",") if name.strip()], out, days)
    typer.echo(f"{page}\n\n{page.read_text()}".rstrip())


@app.command()
def serve(
    kit: KitArgument,
    out: Annotated[Path, typer.Option(help="The folder of all runs.")] = Path("runs"),
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 is each of this machine's.")] = ANY,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Another port than the kits tell, behind a router.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Run the server. Whatever ends its work is begun again; sites come back by themselves."""
    from manyhands.federation.keeper import is_worker, keep
    from manyhands.federation.kit import load_kit

    loaded = load_kit(kit, "server")
    if not is_worker():
        _check_free(host, port or loaded.about.port)
        raise typer.Exit(keep(sys.argv[1:]))
    from manyhands.federation.kit import LEAD as LEAD_NAME
    from manyhands.federation.serving import FederationServer
    from manyhands.federation.switchboard import SiteConnections
    from manyhands.models.state_spec import build_in_subprocess
    from manyhands.silos.device import chosen_device
    from manyhands.silos.memory import release_memory

    build_in_subprocess()
    release_memory(at_once=True)
    out.mkdir(parents=True, exist_ok=True)
    seldom = Seldom(say)
    board = SiteConnections(loaded, [*loaded.about.sites, LEAD_NAME], host, port, seldom)
    say(f"listens at {host}:{port or loaded.about.port}")
    try:
        serving = FederationServer(loaded, board, out, chosen_device(device), say, seldom)
        while True:
            serving.step()
    finally:
        board.close()


@app.command()
def join(
    kit: KitArgument,
    data: Annotated[str, typer.Option(help="The folder of this site's images; its policy may name it, too.")] = "",
    policy: Annotated[Path | None, typer.Option(help="A TOML file: what runs may ask of this site.")] = None,
    out: Annotated[Path, typer.Option(help="What is kept at this site, and never leaves it.")] = Path("site"),
) -> None:
    """Take part as a site: dial the server, and train what this site's policy allows."""
    from manyhands.federation.keeper import is_worker, keep
    from manyhands.federation.kit import load_kit
    from manyhands.federation.policy import Policy
    from manyhands.runs.recipe import read

    loaded = load_kit(kit, "site")
    told = read(Policy, policy, "policy") if policy else Policy()
    told = told.model_copy(update={"data": data}) if data else told
    check_data(told.data, loaded)
    if not is_worker():
        raise typer.Exit(keep(sys.argv[1:]))
    from manyhands.federation.calls import ServerConnection
    from manyhands.federation.site import Site
    from manyhands.silos.memory import release_memory

    release_memory(at_once=False)
    about = loaded.about
    try:
        say(f"{about.party} dials {about.host}:{about.port}: {loaded.server_fingerprint()}")
    except KitError as error:
        if "no server answers" not in str(error):
            raise
        say(f"{error}; it is dialled again and again")
    calls = ServerConnection(loaded, lambda there: say("connected" if there else "the connection is lost; dials again"))
    try:
        Site(about.party, told, out, calls, say).work()
    finally:
        calls.close()


def check_data(data: str, kit: Kit) -> None:
    """Others never say, by a recipe, which images are read here; but in the demo, where all are on this machine."""
    from manyhands.federation.policy import DEALT

    if not data:
        raise RecipeError("--data: name the folder of this site's images")
    if data == DEALT and not kit.is_local:
        raise RecipeError(
            f"--data recipe: is for the demo, whose server is on this machine, and this one's is {kit.about.host}; "
            "name the folder of this site's images"
        )
    if data != DEALT and not Path(data).is_dir():
        raise RecipeError(f"--data {data}: there is no such folder")


@app.command()
def approve(
    site: Annotated[Path, typer.Argument(metavar="SITE", help="The folder that was given to join as --out.")],
    recipe: Annotated[str, typer.Argument(metavar="HASH", help="The hash of a recipe that waits, or its beginning.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: what is shown is approved.")] = False,
) -> None:
    """Show what a recipe would have this site send, and allow it, to the byte."""
    from manyhands.federation.approval import approve as allow
    from manyhands.federation.approval import find_offer, offer_words

    offer = find_offer(site, recipe)
    for line in offer_words(site, offer):
        typer.echo(line)
    if not yes and not is_terminal():
        raise RecipeError(f"{offer.mark}: there is no terminal to ask at; --yes approves what is shown above")
    if not yes and not typer.confirm("Allow it?"):
        raise RecipeError(f"{offer.mark}: was not approved")
    allow(site, [offer.mark])
    typer.echo(f"approved {offer.mark}")


@app.command()
def submit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a shipped recipe.")],
    kit: LeadOption = LEAD,
    changes: Annotated[list[str] | None, typer.Option("--set", help="Change a field: a.b=c.")] = None,
    sites: Annotated[str, typer.Option(help="Only these sites, such as a,b.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Start a run between the sites."""
    from manyhands.federation.lead import Admin
    from manyhands.runs.recipe import load_recipe
    from manyhands.runs.shipped import recipe_path

    told = load_recipe(recipe_path(recipe), changes or [])
    with Admin(kit) as lead:
        found = lead.submit(told, [name for name in sites.split(",") if name])
    if as_json:
        typer.echo(kept_json(found))
        return
    typer.echo(f"{found['run']}: its hash is {found['hash']}")
    typer.echo("each site may have to approve it; see how it stands: manyhands federation status --watch")


@app.command()
def status(
    kit: LeadOption = LEAD,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the run is over.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the sites, and how the newest run stands."""
    from manyhands.federation.lead import Admin

    with Admin(kit) as lead:
        for _ in itertools.count():
            found = lead.status()
            typer.echo(kept_json(found) if as_json else _told(found))
            if not watch or found["run"].get("stage") in ("ended", "stopped", "failed"):
                break
            time.sleep(2)


@app.command()
def stop(kit: LeadOption = LEAD, run: RunOption = "") -> None:
    """End a run before its end."""
    from manyhands.federation.lead import Admin

    with Admin(kit) as lead:
        typer.echo(f"{lead.stop(run)['run']}: stopped")


@app.command()
def fetch(
    out: Annotated[Path, typer.Option(help="Where the run folder goes.")], kit: LeadOption = LEAD, run: RunOption = ""
) -> None:
    """Bring the server's run folder here: the shared model, the journal, the report."""
    from manyhands.federation.lead import Admin

    if out.exists():
        raise RecipeError(f"--out {out}: is there already")
    with Admin(kit) as lead:
        typer.echo(str(lead.fetch(run, out)))


def is_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty()


def _check_free(host: str, port: int) -> None:
    import socket

    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise KitError(f"{host}:{port}: cannot be listened at: {error.strerror or error}") from None


def _told(found: dict[str, Any]) -> str:
    from manyhands.formatting import size_text

    lines = [f"{site:16} {how}" for site, how in found["sites"].items()]  # what a server says may be foreign, too
    if run := found["run"]:
        lines.append(
            f"{run['run']}: {run['stage']}{': ' + run['why'] if run['why'] else ''}, {run['round']} of {run['rounds']} "
            f"rounds, {size_text(run['bytes_up'])} up, {size_text(run['bytes_down'])} down"
        )
    return "\n".join(plain(line, LINE) for line in lines)
