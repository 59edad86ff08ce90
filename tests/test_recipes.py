"""Every shipped recipe parses, says what it is, and prints its plan."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from manyhands import load_recipe, load_sweep
from manyhands.errors import DataError

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_parses_and_says_what_it_is(path: Path) -> None:
    sweep = load_sweep(path)
    assert sweep.name == path.stem
    assert path.read_text().startswith("# ")
    assert re.search(r"Expected: (?!see below)", path.read_text())
    assert all(run.recipe.method.plan().words() for run in sweep.runs())


FORMS = [(path, line) for path in RECIPES for line in path.read_text().splitlines() if line.startswith("#   --set")]


@pytest.mark.parametrize(("path", "line"), FORMS, ids=lambda told: told.stem if isinstance(told, Path) else None)
def test_the_other_forms_that_a_recipe_tells_of_parse(path: Path, line: str) -> None:
    sets = re.findall(r"--set (\S+)", line)
    for other in re.findall(r"\(or (\S+)\)", line):
        load_sweep(path, [f"{sets[0].split('=')[0]}={other}", *sets[1:]])
    load_sweep(path, sets)


def test_where_images_are_not_at_hand_the_error_says_how_to_get_them(tmp_path: Path) -> None:
    (name,) = [path for path in RECIPES if path.stem == "tun-fashion"]
    with pytest.raises(DataError, match="fashion-mnist.*to get it: the four idx.gz files"):
        load_recipe(name, [f"data.source.images={tmp_path}/fashion-mnist/no.gz"]).data.load()
