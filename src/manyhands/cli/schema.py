from __future__ import annotations

import typer

from manyhands.files.strict_json import finite_json


def schema() -> None:
    """Print a JSON schema of recipes, for editors.

    With it an editor completes and checks the TOML files of recipes.
    """
    from manyhands.runs.schema import recipe_schema

    typer.echo(finite_json(recipe_schema()))
