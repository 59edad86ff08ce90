from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manyhands import Folder
from manyhands.errors import RecipeError
from manyhands.runs.compose import silos_of
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import parse_recipe


def fields_of(root: Path, **more: object) -> dict[str, object]:
    silos = {name: {"source": {"kind": "folder", "path": str(root / name)}} for name in ("mayo", "charite")}
    model = {"kind": "fedavg", "rounds": 1, "model": {"widths": [8]}, "training": {"steps": 1}}
    return {"name": "x", "data": {"size": 8}, "silos": silos, "method": model, **more}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for level, name in enumerate(("mayo", "charite")):
        for label in "ab":
            (tmp_path / name / label).mkdir(parents=True)
            for number in range(5):
                Image.fromarray(np.full((8, 8), 100 * level + number, np.uint8)).save(
                    tmp_path / name / label / f"{number}.png"
                )
    return tmp_path


def test_a_line_for_each_hospital_is_what_domains_are(root: Path) -> None:
    recipe = parse_recipe(fields_of(root))
    domains = {name: {"kind": "folder", "path": str(root / name)} for name in ("mayo", "charite")}
    plain = fields_of(root, data={"size": 8, "domains": domains}, partition={"kind": "domains"})
    del plain["silos"]
    assert recipe == parse_recipe(plain)
    assert parse_recipe(recipe.resolved()) == recipe
    silos = {silo.name: silo for silo in silos_of(recipe)[0]}
    assert set(silos) == {"mayo", "charite"}
    assert int(silos["mayo"].images.pixels.max()) < 100 <= int(silos["charite"].images.pixels.min())


def test_from_python_too(root: Path) -> None:
    recipe = parse_recipe(fields_of(root))
    silos = {name: {"source": Folder(path=root / name)} for name in ("mayo", "charite")}
    built = Recipe(name="x", data={"size": 8}, silos=silos, method=recipe.method)  # type: ignore[arg-type, call-arg]
    assert built.silo_names == recipe.silo_names == ["mayo", "charite"]


@pytest.mark.parametrize(
    ("silos", "said"),
    [
        ({"mayo": {"source": {"kind": "foldr", "path": "x"}}}, r"silos\.mayo\.source: .*'foldr' is not known; did you"),
        ({"mayo": {"source": {"kind": "folder", "pth": "x"}}}, r"silos\.mayo\.source: .*unknown key 'pth'"),
        ({"mayo": {"sorce": "digits"}}, r"silos\.mayo: unknown key 'sorce'; did you mean 'source'"),
        ({"mayo": {}}, r"silos\.mayo\.source: is missing"),
        ({"Mayo Clinic": {"source": "digits"}}, "'Mayo Clinic' gives its silo its name"),
    ],
)
def test_errors_name_the_place_that_was_written(root: Path, silos: object, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_recipe(fields_of(root, silos=silos))


def test_a_source_beside_silos_is_refused(root: Path) -> None:
    with pytest.raises(RecipeError, match="x: silos: .*so data.source is not expected"):
        parse_recipe(fields_of(root, data={"size": 8, "source": "digits"}), "x")
