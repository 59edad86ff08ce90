"""A job folder: FLARE's layout, no code, and the very recipe."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manyhands import __version__
from manyhands.errors import RecipeError
from manyhands.federation.job.folder import FLARE, RECEIVERS, SERVER_COMPONENT, SITE_COMPONENT, check_job, write_job
from manyhands.federation.policy import recipe_hash, recipe_text
from manyhands.runs.recipe_file import load_recipe, parse_recipe
from manyhands.runs.shipped import recipe_path
from tests.command import manyhands

ROOT = Path(__file__).parents[3]


def named_in(part: Any) -> Iterator[dict[str, Any]]:
    """Every class that a configuration names, with its arguments, wherever it stands."""
    if isinstance(part, dict) and "path" in part:
        yield part
    elif isinstance(part, dict | list):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from named_in(inner)


def test_a_job_holds_the_very_recipe_and_no_code(tmp_path: Path) -> None:
    """Both parties read the same text, by whose hash a site approves the run."""
    recipe = load_recipe(recipe_path("digits-collafuse"), [])
    job = write_job(recipe, tmp_path / "job", run="mine")
    assert {path.suffix for path in job.rglob("*") if path.is_file()} == {".json"}
    for party, path in {"server": SERVER_COMPONENT, "client": SITE_COMPONENT}.items():
        (named,) = named_in(json.loads((job / "app" / "config" / f"config_fed_{party}.json").read_text()))
        assert named["path"] == path
        assert named["args"] == {"recipe": recipe_text(recipe), "run": "mine", "version": __version__}
    again = parse_recipe(tomllib.loads(named["args"]["recipe"]), "job")
    assert recipe_hash(recipe_text(again)) == recipe_hash(recipe_text(recipe))


@pytest.mark.parametrize(("sites", "deployed"), [([], ["@ALL"]), (["a", "b"], ["server", "a", "b"])])
def test_it_goes_to_the_sites_that_are_named(tmp_path: Path, sites: list[str], deployed: list[str]) -> None:
    recipe = load_recipe(recipe_path("digits-fedavg"), ["quorum=2"])
    meta = json.loads((write_job(recipe, tmp_path / "job", sites) / "meta.json").read_text())
    assert meta["deploy_map"] == {"app": deployed}
    assert meta["min_clients"] == 2


def test_the_components_are_where_the_job_says() -> None:
    pytest.importorskip("nvflare")
    from manyhands.federation.job.server_component import RunServer
    from manyhands.federation.job.site_component import RunSite

    for component, path in ((RunServer, SERVER_COMPONENT), (RunSite, SITE_COMPONENT)):
        assert f"{component.__module__}.{component.__name__}" == path


@pytest.mark.parametrize("run", ["../run", "a/b", ".", "..", "Run", "a b", "a" * 81, "\x1b[2J"])
def test_a_name_that_is_none_of_a_run_is_refused_and_nothing_is_written(tmp_path: Path, run: str) -> None:
    with pytest.raises(RecipeError, match="use a-z, 0-9, '.', '_' and '-', at most 80 in all") as refusal:
        write_job(load_recipe(recipe_path("digits-fedavg"), []), tmp_path / "job", run=run)
    assert str(refusal.value).startswith("--run ")
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_the_run_is_called_as_the_recipe_is(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_path("digits-fedavg"), ["name='mine'"])
    assert json.loads((write_job(recipe, tmp_path / "job") / "meta.json").read_text())["name"] == "mine"


def test_the_figures_of_rounds_go_to_receivers_of_flare_that_there_are(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_path("digits-fedavg"), [])
    job = write_job(recipe, tmp_path / "job", track=list(RECEIVERS))
    _, *named = named_in(json.loads((job / "app" / "config" / "config_fed_server.json").read_text()))
    assert [receiver["path"] for receiver in named] == list(RECEIVERS.values())
    with pytest.raises(RecipeError, match="--track tensorbord: .*did you mean 'tensorboard'"):
        write_job(recipe, tmp_path / "other", track=["tensorbord"])
    assert not (tmp_path / "other").exists()


def test_a_job_of_another_version_is_refused_with_both() -> None:
    check_job("a", __version__)
    with pytest.raises(RecipeError, match=f"manyhands 0.0.7, but {__version__} is installed here"):
        check_job("a", "0.0.7")


def test_what_cannot_be_a_job_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    recipe = load_recipe(recipe_path("digits-fedavg"), [])
    with pytest.raises(RecipeError, match="mine: exists already; give a new folder"):
        write_job(recipe, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "all of it"
    central = load_recipe(recipe_path("digits-fedavg"), ["method.kind=central"])
    with pytest.raises(RecipeError, match="'central' needs all images in one place"):
        write_job(central, tmp_path / "job")
    said = manyhands("federation", "job", "fedavg-of-all", "--out", "job", where=tmp_path)
    assert said.returncode == 2
    assert "there is no such recipe" in said.stderr
    assert not (tmp_path / "job").exists()


def test_the_pin_of_flare_is_the_version_that_was_killed_in_every_way() -> None:
    pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["network"]
    assert pinned == [f"nvflare=={FLARE}0"], "before the pin moves, run what CONTRIBUTING.md names, with FLARE changed"
