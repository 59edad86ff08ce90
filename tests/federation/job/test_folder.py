"""A job folder: FLARE's layout, no code, and the very recipe."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from manyhands.errors import RecipeError
from manyhands.federation.job.folder import SERVER_COMPONENT, SITE_COMPONENT, write_job
from manyhands.federation.policy import recipe_hash, recipe_text
from manyhands.runs.recipe_file import load_recipe, parse_recipe
from manyhands.runs.shipped import recipe_path
from tests.command import manyhands


def components(job: Path) -> tuple[dict[str, object], dict[str, object]]:
    server = json.loads((job / "app" / "config" / "config_fed_server.json").read_text())
    site = json.loads((job / "app" / "config" / "config_fed_client.json").read_text())
    return server["workflows"][0], site["executors"][0]


def test_a_job_holds_the_very_recipe_and_no_code(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_path("digits-collafuse"), [])
    server, site = components(write_job(recipe, tmp_path / "job", run="mine"))
    assert {path.suffix for path in (tmp_path / "job").rglob("*") if path.is_file()} == {".json"}
    arguments = server["args"]
    assert isinstance(arguments, dict)
    again = parse_recipe(tomllib.loads(arguments["recipe"]), "job")
    assert recipe_hash(recipe_text(again)) == recipe_hash(recipe_text(recipe))
    assert arguments["run"] == "mine"
    assert (server["path"], site["executor"]) == (SERVER_COMPONENT, {"path": SITE_COMPONENT, "args": {}})


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
