"""Make the kits of a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
