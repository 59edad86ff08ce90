"""Take part in a federation as a site."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyhands.cli.federation.options import KitArgument
from manyhands.errors import KitError, RecipeError
from manyhands.federation.log import log

if TYPE_CHECKING:
    from manyhands.federation.kit import Kit


def join(
    kit: KitArgument,
    data: Annotated[
        str, typer.Option(metavar="DIR", help="The folder of this site's images. Default: data in the policy.")
    ] = "",
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A TOML file with what this site allows runs to do. Default: each recipe needs an approval.",
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
    from manyhands.federation.secret import check_secret
    from manyhands.federation.supervisor import end_with_supervisor, is_worker, supervise
    from manyhands.runs.recipe_file import read

    loaded = load_kit(kit, "site")
    rules = read(Policy, policy, "policy") if policy else Policy()
    rules = rules.model_copy(update={"data": data}) if data else rules
    check_data(rules.data, loaded)
    check_secret(Path(rules.ledger) if rules.ledger else out)
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
    connection = ServerConnection(
        loaded.connect(), lambda up: log("connected" if up else "connection lost; reconnecting")
    )
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
