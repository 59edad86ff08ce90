"""Every shipped recipe parses, says what it is, and prints its plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from manyhands import load_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_parses_and_says_what_it_is(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert path.read_text().startswith("# ")
    assert "xpected" in path.read_text()
    assert recipe.method.plan().words()
