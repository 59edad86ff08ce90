"""The recipes that come with the package."""

from __future__ import annotations

from pathlib import Path

from manyhands.errors import RecipeError


def shipped() -> list[Path]:
    """Those inside an installed package, or those of the checkout that the package is run from."""
    inside, beside = Path(__file__).parents[1] / "recipes", Path(__file__).parents[3] / "recipes"
    return sorted((inside if inside.is_dir() else beside).glob("*.toml"))


def recipe_path(given: str) -> Path:
    """A file, or the shipped recipe of this name."""
    if given.endswith(".toml") or Path(given).is_file():
        return Path(given)
    from manyhands.spec import suggest

    known = {path.stem: path for path in shipped()}
    if given not in known:
        raise RecipeError(f"{given}: there is no such recipe; {suggest(given, list(known))}")
    return known[given]
