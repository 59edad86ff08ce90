"""Make the kits of a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manyhands.cli.federation.options import names


def new(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The address at which sites reach the server.")],
    sites: Annotated[str, typer.Option(metavar="NAMES", help="Names of the sites, such as a,b,c.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the kits; it must be new or empty.")],
    days: Annotated[
        int, typer.Option(metavar="N", min=1, max=360, help="Days for which the certificates are valid.")
    ] = 360,
    users: Annotated[
        str,
        typer.Option(metavar="USERS", help="Further users and their roles in FLARE, such as ann@a.org:lead."),
    ] = "",
) -> None:
    """Make a start-up kit of FLARE for each party.

    It holds the certificate and the key of the party, and the address of the server.
    """
    from manyhands.federation.provision import new_kits

    page = new_kits(server, names(sites), out, days, names(users))
    typer.echo(f"{page}\n\n{page.read_text()}".rstrip())
