"""The recipes and pages that are part of the package."""

from __future__ import annotations

from pathlib import Path

from manyhands.errors import RecipeError


def shipped_folder(name: str) -> Path:
    """The folder with this name in the installed package, or in the checkout that the package is run from."""
    inside, beside = Path(__file__).parents[1] / name, Path(__file__).parents[3] / name
    return inside if inside.is_dir() else beside


def shipped() -> list[Path]:
    """The recipes of the package."""
    return sorted(shipped_folder("recipes").glob("*.toml"))


def recipe_path(name: str) -> Path:
    """The path of a recipe: a file, or the shipped recipe with this name."""
    if name.endswith(".toml") or Path(name).is_file():
        return Path(name)
    from manyhands.spec import suggest

    known = {path.stem: path for path in shipped()}
    if name not in known:
        raise RecipeError(f"{name}: there is no such recipe; {suggest(name, list(known))}")
    return known[name]
