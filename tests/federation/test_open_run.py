"""A run at the server: begun once, gone on with by whoever has its recipe, and never by two at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from manyhands.errors import RunFolderError
from manyhands.federation import open_run as module
from manyhands.federation.open_run import open_run
from manyhands.federation.run_session import RunSession, Stage
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.shipped import recipe_path

SITES = ("a", "b")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is about to end is waited for, but not here."""
    monkeypatch.setattr(module, "ENDING_SECONDS", 0.0, raising=False)


def recipe(*changes: str) -> Recipe:
    return load_recipe(recipe_path("digits-fedavg"), ["partition.silos=2", *changes])


@contextmanager
def opened(path: Path, job: str = "job", recipe: Recipe = recipe()) -> Iterator[RunSession]:  # noqa: B008 - it is frozen
    with open_run(path / "run", recipe, SITES, job, torch.device("cpu"), now=5.0) as session:
        yield session


def test_a_run_begins_and_its_folder_says_so(tmp_path: Path) -> None:
    with opened(tmp_path) as session:
        assert (session.stage, session.round, session.job, session.since) == ("gathering", 0, "job", 5.0)
        assert session.sites.expected == SITES
    assert (tmp_path / "run" / "recipe.toml").is_file()


@pytest.mark.parametrize("job", ["job", "another"])
@pytest.mark.parametrize("stage", ["gathering", "stopped", "failed"])
def test_a_run_that_has_not_ended_goes_on_with_the_sites_that_it_had(tmp_path: Path, stage: Stage, job: str) -> None:
    with opened(tmp_path) as session:
        session.sites.add("a", 5, 1)
        session.sites.start()
        session.sites.decline("b", "its policy", waits=False)
        session.stop(stage, "for some reason")
    for _ in range(2):
        with opened(tmp_path, job) as again:
            assert (again.stage, again.why, again.job) == ("gathering", "" if stage != "gathering" else again.why, job)
            assert again.sites.roster == {"a": 5}
            assert again.sites.declined == {}, "a site may decide anew"


def test_a_run_that_has_yet_to_train_takes_the_sites_of_its_new_job(tmp_path: Path) -> None:
    with opened(tmp_path) as session:
        session.stop("stopped", "by the admin")
    with open_run(tmp_path / "run", recipe(), ("a", "b", "c"), "another", torch.device("cpu"), 0.0) as again:
        assert again.sites.awaited == ["a", "b", "c"]


def test_a_run_whose_model_was_being_written_goes_on_with_that(tmp_path: Path) -> None:
    with opened(tmp_path) as session:
        session.stop("exporting")
    with opened(tmp_path, "another") as again:
        assert again.stage == "exporting"


def test_a_run_that_has_ended_is_only_of_the_same_job(tmp_path: Path) -> None:
    """FLARE may begin the process of a job again when its run has ended."""
    with opened(tmp_path) as session:
        session.folder.write("ledger.json", session.ledger.entries())
        session.stop("ended")
    with opened(tmp_path) as again:
        assert again.stage == "ended"
    with pytest.raises(RunFolderError, match="run: the run has ended; submit it under another name with --run"):
        opened(tmp_path, "another").__enter__()
    with opened(tmp_path) as again:
        assert again.stage == "ended"


def test_another_recipe_is_refused_and_the_run_is_left_as_it_is(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match="was started with another recipe: .*rounds"):
        opened(tmp_path, recipe=recipe("method.rounds=7")).__enter__()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_second_process_is_refused_while_the_first_one_runs(tmp_path: Path) -> None:
    with opened(tmp_path):
        with pytest.raises(RunFolderError, match="another process is running in it"):
            opened(tmp_path).__enter__()
        with opened(tmp_path / "beside"):
            pass
    with opened(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "{}", '{"stage": "gathering", "why": "", "job": ""}'])
def test_a_damaged_file_of_the_run_is_an_error_with_its_folder(tmp_path: Path, content: str) -> None:
    with opened(tmp_path):
        pass
    (tmp_path / "run" / "federation.json").write_text(content)
    with pytest.raises(RunFolderError, match="run: holds no run between sites"):
        opened(tmp_path).__enter__()


def test_a_folder_of_a_run_that_is_not_between_sites_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text("name = 'another'\n")
    with pytest.raises(RunFolderError, match="holds a run already"):
        opened(tmp_path).__enter__()
