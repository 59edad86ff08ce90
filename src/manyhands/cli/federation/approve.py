"""Approve a recipe at a site."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from manyhands.cli.federation.options import KitArgument
from manyhands.errors import RecipeError


def approve(
    kit: KitArgument,
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="HASH", help="The hash of a waiting recipe, or its first digits; none: list the waiting recipes."
        ),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Approve without asking.")] = False,
) -> None:
    """Show what a recipe would send from this site, and approve it.

    The approval holds for exactly this recipe: any change of it needs a new one.
    """
    from manyhands.federation.approval import approve as allow
    from manyhands.federation.approval import describe_offer, find_offer, waiting
    from manyhands.federation.kit import KEPT

    site = kit / KEPT
    if not recipe:
        typer.echo("\n".join(waiting(site)) or f"no recipe waits in {site}")
        return
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


def is_terminal() -> bool:
    """Whether a person can be asked a question."""
    return sys.stdin.isatty()
