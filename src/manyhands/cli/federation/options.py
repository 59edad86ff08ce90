"""Options that several commands of a federation have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyhands.errors import RecipeError

if TYPE_CHECKING:
    from manyhands.runs.recipe import Recipe

KitArgument = Annotated[
    Path, typer.Argument(metavar="KIT", help="The folder of this party's kit (see federation new).")
]
DataOption = Annotated[
    str, typer.Option(metavar="DIR", help="The folder of this site's images. Default: data in the policy.")
]
SitesOption = Annotated[
    str, typer.Option(metavar="NAMES", help="Train with these sites only, such as a,b. Default: all sites.")
]
TrackOption = Annotated[
    str,
    typer.Option(metavar="NAMES", help="Send the figures of each round to tensorboard, mlflow or both, at the server."),
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="A TOML file with what this site allows runs to do. Default: the policy that it has."
    ),
]


def load(recipe: str, changes: list[str] | None) -> Recipe:
    """Load a recipe for real sites, which must list its classes."""
    from manyhands.runs.recipe_file import check_lists_classes, load_recipe
    from manyhands.runs.shipped import recipe_path

    loaded = load_recipe(recipe_path(recipe), changes or [])
    check_lists_classes(loaded.resolved(), recipe)
    return loaded


def names(text: str) -> list[str]:
    """Return the names in a text with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def gone(option: str, instead: str) -> typer.models.OptionInfo:
    """Return an option of an older version, which says what to do instead."""

    def refuse(value: str | None) -> str | None:
        if value is not None:
            raise RecipeError(f"{option}: {instead}")
        return value

    return typer.Option(option, hidden=True, callback=refuse)  # type: ignore[no-any-return]
