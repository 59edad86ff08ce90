"""Every shipped recipe parses, says what it is, and prints its plan."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import given_away
from harness.tables import files, header, recipes
from manyhands import load_recipe, load_sweep
from manyhands.audit.attacks import identity
from manyhands.errors import DataError, RecipeError
from manyhands.models.pretrained import Pretrained

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_parses_and_says_what_it_is(path: Path) -> None:
    sweep = load_sweep(path)
    assert sweep.name == path.stem
    assert path.read_text().startswith("# ")
    assert re.search(r"Expected: (?!see below)", path.read_text())
    for method in (run.recipe.method for run in sweep.runs()):
        if isinstance(method.image_model, Pretrained):
            with pytest.raises(RecipeError, match="'runs/.*/model' is no folder"):
                method.plan()
        else:
            assert method.plan().words()


FORMS = [(path, line) for path in RECIPES for line in path.read_text().splitlines() if line.startswith("#   --set")]


@pytest.mark.parametrize(("path", "line"), FORMS, ids=lambda recipe: recipe.stem if isinstance(recipe, Path) else None)
def test_the_other_forms_that_a_recipe_tells_of_parse(path: Path, line: str) -> None:
    sets = re.findall(r"--set (\S+)", line)
    for other in re.findall(r"\(or (\S+)\)", line):
        load_sweep(path, [f"{sets[0].split('=')[0]}={other}", *sets[1:]])
    load_sweep(path, sets)


def test_all_recipes_that_cut_say_what_their_cut_gives_away() -> None:
    kinds = {path: load_sweep(path).runs()[0].recipe.method.kind for path in RECIPES}
    assert recipes() == [path for path, kind in kinds.items() if kind not in ("fedavg", "local", "central")]
    for path in recipes():
        assert header(path) == path.read_text(), "run: python -m benchmarks.table"
        computable = "can compute the images and labels" in " ".join(path.read_text().replace("# ", "").split())
        assert computable == (kinds[path] == "huscf")


@pytest.mark.parametrize("path", given_away.shipped(), ids=lambda path: path.stem)
def test_what_a_header_says_is_what_the_cut_comes_to(path: Path) -> None:
    kept = files("given_away")[path.stem][0]["figures"]
    assert given_away.of_cuts(path) == kept["cuts"]
    words = path.read_text().split("# Gives away:")[1].split("# Expected:")[0]
    for cut in kept["cuts"]:
        assert f"epsilon {cut['epsilon']:,.0f}" in words
        assert f"{cut['snr_db']:.1f}".removeprefix("-") in words
    if path.stem == "digits-collafuse":  # the others take longer, or data that is not here
        assert given_away.picked(path, path.parent) == pytest.approx(kept["picked"], abs=0.005)


def test_pictures_as_far_apart_as_is_said_are_told_apart() -> None:
    rng, snr = torch.Generator().manual_seed(0), 0.5
    images = given_away.distance(snr) / 2**0.5 * torch.eye(1000)  # any two of them just so far apart
    hits = [
        identity.recognised(images + snr**-0.5 * torch.randn(images.shape, generator=rng), images, 1.0)
        for _ in range(3)
    ]
    assert torch.stack(hits).float().mean() > given_away.TOLD_APART


def test_where_images_are_not_at_hand_the_error_says_how_to_get_them(tmp_path: Path) -> None:
    (name,) = [path for path in RECIPES if path.stem == "tun-fashion"]
    with pytest.raises(DataError, match="fashion-mnist.*to obtain the images: the four idx.gz files"):
        load_recipe(name, [f"data.source.images={tmp_path}/fashion-mnist/no.gz"]).data.load()
