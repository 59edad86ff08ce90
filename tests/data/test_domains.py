"""The names of domains are those of their silos, from the recipe to the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image

from manyhands import Domains, Lacking, compose, split
from manyhands.data.images import join
from manyhands.errors import DataError, RecipeError
from manyhands.federation import demo
from manyhands.federation.policy import Policy, recipe_text
from manyhands.federation.site import Site
from manyhands.runs.finished import held_silos
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import parse_recipe
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.summary import data_of
from manyhands.tensors import sha256
from tests.conftest import tiny_images

NAMES = ["stanford", "mayo", "charite"]
"""Not in the order of the alphabet."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of two classes in a folder for each name; those of one folder have one shade."""
    root = tmp_path_factory.mktemp("domains")
    for number, name in enumerate(NAMES):
        for i in range(8):
            place = root / name / ("cat", "dog")[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 80 * number + i, np.uint8)).save(place / f"{i}.png")
    return root


def fields_of(folder: Path, names: list[str] | None = None, **beside: Any) -> dict[str, Any]:
    """The fields of a recipe without a number of silos."""
    method = {"kind": "fedavg", "rounds": 1, "model": {"widths": [8]}, "training": {"steps": 1, "batch": 2}}
    places = {name: {"kind": "folder", "path": str(folder / name)} for name in names or NAMES}
    fields = {
        "data": {"size": 8, "classes": ["cat", "dog"], "held_out": 0.25, "domains": places},
        "partition": {"kind": "domains"},
    }
    return {
        "name": "three",
        **fields,
        "evaluation": {"images": 0},
        "sampling": {"steps": 1},
        **beside,
        "method": method | beside.get("method", {}),
    }


def recipe_of(folder: Path, names: list[str] | None = None, **beside: Any) -> Recipe:
    return parse_recipe(fields_of(folder, names, **beside))


def test_one_silo_a_domain_has_its_name(folder: Path) -> None:
    recipe = recipe_of(folder)
    assert (recipe.partition.silos, recipe.silo_names) == (3, NAMES)
    assert parse_recipe(recipe.resolved()) == recipe
    silos = split(recipe.data.load(), recipe.partition)
    shades = {silo.name: int(silo.images.pixels.min()) // 80 for silo in silos}
    assert shades == {name: number for number, name in enumerate(NAMES)}
    assert [(len(silo.images), len(silo.held_out or ())) for silo in silos] == [(6, 2)] * 3


def test_several_silos_a_domain_are_numbered(folder: Path) -> None:
    recipe = recipe_of(folder, partition={"kind": "domains", "silos": 6})
    assert recipe.silo_names == [f"{name}-{i}" for name in NAMES for i in range(2)]
    assert sorted(silo.name for silo in split(recipe.data.load(), recipe.partition)) == sorted(recipe.silo_names)
    many = Domains(silos=22).names(("a", "b"))
    assert (many[0], many[10], many[-1], len(set(many))) == ("a-00", "a-10", "b-10", 22)


def test_nothing_but_names_depends_on_the_order_in_the_recipe(folder: Path) -> None:
    ends = []
    for names in (NAMES, NAMES[::-1]):
        recipe = recipe_of(folder, names)
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"limit": 20})})
        list(experiment := compose(recipe))
        assert recipe.silo_names == names
        ends.append((data_of(experiment.silos), sha256(experiment.server.state_dict())))
    assert ends[0] == ends[1]


def test_silos_that_lack_classes_have_names_of_domains_too(folder: Path) -> None:
    recipe = recipe_of(folder, partition={"kind": "lacking", "each": 4})
    assert [silo.name for silo in compose(recipe).silos] == sorted(NAMES)
    assert Lacking(silos=2, each=4).names() == ["silo-0", "silo-1"]


def test_names_are_kept_in_run_folder_journal_and_report(folder: Path, tmp_path: Path) -> None:
    (done,) = compose(recipe_of(folder, method={"keep_optimiser": True}), tmp_path / "run")
    run, names = RunFolder(tmp_path / "run"), set(NAMES)
    assert set(done.losses) == names
    assert {place.name for place in (tmp_path / "run" / "silos").iterdir()} == names
    assert names == set(run.report["silos"]) == set(run.report["class_counts"]) == set(run.rounds[0].losses)
    assert run.report["domains"] == {name: name for name in NAMES}
    assert {row["silo"] for row in json.loads((tmp_path / "run" / "ledger.json").read_text())} == names
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(f">{name}</t" in page for name in NAMES)
    assert [silo.name for silo in held_silos(run)[1]] == sorted(NAMES)  # the images are found to be the same
    assert [silo.name for silo in held_silos(run, "recipe")[1]] == sorted(NAMES)


def test_methods_name_silos_by_their_domains(folder: Path) -> None:
    method = {"kind": "collafuse", "cut": 0.4, "cuts": {"mayo": 0.6}}
    experiment = compose(recipe_of(folder, method=method))
    assert {silo.name: experiment.method.step_of(silo.name) for silo in experiment.silos}["mayo"] == 600  # type: ignore[attr-defined]
    clusters = {"clusters": {"a": ["mayo", "charite"], "b": ["stanford"]}, "federate_silos": True}
    assert recipe_of(folder, method=method | clusters).silo_names == NAMES
    with pytest.raises(RecipeError, match="method names 'silo-1'; known: charite, mayo, stanford"):
        recipe_of(folder, method={"kind": "collafuse", "cut": 0.4, "cuts": {"silo-1": 0.6}})


def test_central_stands_for_one_silo_a_domain(folder: Path) -> None:
    recipe = recipe_of(folder, method={"kind": "central"})
    assert recipe.method.silos == 3  # type: ignore[union-attr]
    (silo,) = compose(recipe).silos
    assert (silo.name, len(silo.images)) == ("pooled", 18)


@pytest.mark.parametrize("name", ["Mayo Clinic", "mayo/..", "..", "a..b", "", "é", "a" * 64, "\n"])
def test_a_domain_that_can_name_no_silo_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe: data: domain .* gives its silo its name: use a-z, 0-9"):
        recipe_of(folder, ["mayo", name])


def test_a_number_of_silos_that_does_not_fit_the_domains_is_refused(folder: Path) -> None:
    for count in (1, 2, 4, 5):
        with pytest.raises(
            RecipeError, match=f"partition.silos is {count}, a multiple of 3, the number of domains, is expected"
        ):
            recipe_of(folder, partition={"kind": "domains", "silos": count})
    long = "a" * 62
    with pytest.raises(RecipeError, match="a silo would be named 'a*-0': use .* give its domain a shorter name"):
        recipe_of(folder, [long, "b"], partition={"kind": "domains", "silos": 4})


def test_from_python_too() -> None:
    images = join([tiny_images(6), tiny_images(4, seed=1)], ("night", "day"))
    assert [(silo.name, len(silo.images)) for silo in split(images, Domains())] == [("night", 6), ("day", 4)]
    nameless = replace(images, domains=())
    assert [silo.name for silo in split(nameless, Domains(silos=2))] == ["silo-0", "silo-1"]
    with pytest.raises(DataError, match="have no names: set the number of silos"):
        split(nameless, Domains())
    with pytest.raises(DataError, match="domain 'day' has no images here"):
        split(images.subset(np.flatnonzero(images.domain == torch.tensor(0))), Domains())


def test_a_site_gets_the_images_of_the_domain_of_its_name(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder)
    site = Site(
        "mayo", Policy(approve="limits", labels=True, computable=True, data="recipe"), tmp_path, None, lambda _: None
    )  # type: ignore[arg-type]
    _, silo = site.check_offer("three", recipe_text(recipe))
    assert {int(shade) // 80 for shade in silo.images.pixels.unique()} == {1}


def test_the_demo_has_a_site_for_each_domain(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / "three.toml").write_text(tomli_w.dumps(fields_of(folder)))
    asked: list[list[str]] = []

    def noted(out: Path, sites: list[str]) -> None:
        asked.append(sites)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "LocalFederation", noted)
    for changes in ([], ["partition.silos=6"]):
        with pytest.raises(KeyboardInterrupt):
            demo.demo(demo.demo_recipe(path, changes), tmp_path / "out", print)
    assert asked[0] == NAMES
    assert asked[1][:2] == ["stanford-0", "stanford-1"]
