"""A sweep is its runs: each a recipe of its own, none begun before all are known to be good."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from manyhands import load_recipe, load_sweep
from manyhands.cli.app import app
from manyhands.errors import RecipeError, RunFolderError
from manyhands.runs.recipe_file import parse_recipe
from manyhands.runs.sweep import check_parents, write_index
from tests.cli.test_cli import TINY
from tests.command import manyhands
from tests.runs.test_recipe import TEXT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(TEXT)
    return file


def swept(path: Path, text: str) -> Path:
    path.write_text(f"{TEXT}[sweep]\n{text}\n")
    return path


def test_without_a_sweep_it_is_the_recipe_itself(path: Path) -> None:
    for text in (TEXT, TEXT + "[sweep]\n"):
        path.write_text(text)
        sweep = load_sweep(path, ["seed=3"])
        assert not sweep.is_swept
        assert sweep.name == "mine"
        path.write_text(TEXT)
        assert [run.recipe for run in sweep.runs()] == [load_recipe(path, ["seed=3"])]
        assert [run.folder for run in sweep.runs()] == [""]
        assert [(run.folder, run.recipe.seed) for run in sweep.runs(2)] == [("seed-3", 3), ("seed-4", 4)]


@pytest.mark.parametrize(
    "text", ['ema = [0, 0.5]\n"training.steps" = [1]', 'method.ema = [0, 0.5]\n"method.training.steps" = [1]']
)
def test_every_combination_is_what_set_would_have_made_of_the_recipe(path: Path, text: str) -> None:
    text = text.replace('"training', '"method.training')
    runs = load_sweep(swept(path, text)).runs()
    path.write_text(TEXT)
    assert [run.folder for run in runs] == ["ema-0_training.steps-1", "ema-0.5_training.steps-1"]
    for run, ema in zip(runs, (0, 0.5), strict=True):
        assert run.values == {"method.ema": ema, "method.training.steps": 1}
        same = load_recipe(path, [f"method.ema={ema}", f"name={run.recipe.name}"])
        assert run.recipe == same == parse_recipe(tomllib.loads(tomli_w.dumps(run.recipe.resolved())))
        assert run.recipe.name == f"mine-{run.folder}"


def test_tables_short_forms_and_lists_can_be_swept_and_keep_apart(path: Path) -> None:
    text = (
        'up = ["float16", {kind = "updates", bits = 4}]\nmethod.model.widths = [[8], [8, 16]]\npartition.silos = [2, 3]'
    )
    runs = load_sweep(swept(path, text)).runs(seeds=2)
    assert len({run.folder for run in runs}) == len(runs) == 16
    assert runs[-1].folder == "up-kind-updates-bits-4_model.widths-8-16_partition.silos-3/seed-1"
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+/seed-[01]", run.folder) for run in runs)
    bits = load_sweep(swept(path, 'up = ["updates"]\n"method.up.bits" = [2, 4]')).variants
    assert [run.recipe.method.up.bits for run in bits] == [2, 4]  # type: ignore[union-attr]
    inner = load_sweep(swept(path, 'up = [{kind = "updates"}]\n"method.up.bits" = [2, 4]')).variants
    assert inner[0].values == {"method.up": {"kind": "updates"}, "method.up.bits": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ema = [0, 1.4]", r"mine.toml: sweep method.ema=1.4: method.ema: is 1.4, but"),
        ("emma = [0]", r"sweep method.emma=0: method: unknown key 'emma'; did you mean 'ema'\?"),
        ("ema = 0.5", r"sweep.ema: is 0.5, but should be a list of values"),
        ("ema = []", r"sweep.ema: is \[\], but should be a list of values"),
        ("method.rounds.x = [1]", r"sweep method.rounds.x=1: rounds is a value, not a table"),
        ('ema = [0]\n"method.ema" = [0.5]', r"sweep: method.ema is listed twice"),
        ("ema = [0, 0.0]", r"sweep: method.ema=0 and method.ema=0.0 are the same run"),
        ("ema = [0.5, 0.5]", r"sweep: method.ema=0.5 and method.ema=0.5 are one folder"),
        ('data.origin = ["a b", "a/b"]', r"data.origin=a b and data.origin=a/b are one folder"),
        ('data.origin = ["a", "A"]', r"are one folder"),
        (f'data.origin = ["{"x" * 300}"]', r"a name of more than 200 characters"),
        ("rounds = [nan]", r"method.rounds: is nan, but"),
        ("rounds = [2026-01-01]", r"method.rounds: "),
        (
            f"rounds = {list(range(1, 102))}\nema = {[i / 10 for i in range(10)]}",
            r"has 1,010 combinations, 1,000 are the maximum",
        ),
    ],
)
def test_a_wrong_sweep_is_told_by_what_is_wrong_with_it(path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_sweep(swept(path, text))


def test_a_sweep_is_a_table_and_is_not_passed_over(path: Path) -> None:
    with pytest.raises(RecipeError, match="several recipes: load_sweep"):
        load_recipe(swept(path, "ema = [0]"))
    with pytest.raises(RecipeError, match=r"sweep: is 3, but should be a table of fields"):
        load_sweep(path, ["sweep=3"])


def test_what_is_in_a_folder_is_not_written_over_unasked(path: Path, tmp_path: Path) -> None:
    runs = load_sweep(swept(path, "ema = [0, 0.5]")).runs()
    write_index(tmp_path / "out", runs, resume=False)
    with pytest.raises(RunFolderError, match="holds a sweep already; continue it with --resume"):
        write_index(tmp_path / "out", runs, resume=False)
    write_index(tmp_path / "out", runs[:1], resume=True)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == [
        {"values": {"method.ema": 0}, "seed": 0, "folder": "ema-0"}
    ]


@pytest.mark.parametrize(
    ("held", "text", "seeds", "message"),
    [
        ("recipe.toml", "", 2, "out: holds another run already; choose another folder"),
        ("recipe.toml", "ema = [0]", 1, "out: holds another run already"),
        ("sweep.json", "", 2, "out: holds another sweep already"),
        ("seed-0/recipe.toml", "ema = [0]", 1, "out: is not empty and holds no sweep"),
        ("sweep.json ema-0/recipe.toml", "ema = [0]", 2, "ema-0: holds another run already"),
    ],
)
def test_several_runs_are_not_put_around_another_run(
    path: Path, tmp_path: Path, held: str, text: str, seeds: int, message: str
) -> None:
    runs, out = load_sweep(swept(path, text) if text else path).runs(seeds), tmp_path / "out"
    check_parents(out, runs)
    for name in held.split():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    with pytest.raises(RunFolderError, match=message):
        check_parents(out, runs)


def test_the_command_runs_all_of_it_and_goes_on_where_it_was(tmp_path: Path) -> None:
    args = ["run", *TINY, "--set", "evaluation.images=30", "--set", "sweep.ema=[0, 0.5]", "--out", "out"]
    planned = CliRunner().invoke(app, [*args, "--dry-run"]).stdout
    assert re.findall(r"^\S.*$", planned, re.MULTILINE) == ["ema-0", "ema-0.5"]
    assert "weights" in planned
    plans = json.loads(CliRunner().invoke(app, [*args, "--dry-run", "--json"]).stdout)["runs"]
    assert [plan["recipe"]["method"]["ema"] for plan in plans] == [0, 0.5]
    wrong = manyhands(*args, "--set", "sweep.ema=[0, 2]", where=tmp_path)
    assert wrong.returncode == 2
    assert not (tmp_path / "out").exists()
    first = manyhands(*args, where=tmp_path)
    assert first.returncode == 0, first.stderr
    rows = [re.split(r" {2,}", line.strip()) for line in first.stdout.splitlines()]
    assert ["ema-0", "ema-0.5", "real images"] in [sorted(row) for row in rows]
    assert rows[0][0].startswith("ema-0: FID")  # how far from real images, first of all
    index = json.loads((tmp_path / "out" / "sweep.json").read_text())
    for entry in index:
        kept = tomllib.loads((tmp_path / "out" / entry["folder"] / "recipe.toml").read_text())
        assert kept["method"]["ema"] == entry["values"]["method.ema"]
        assert "sweep" not in kept
    before = (tmp_path / "out" / "ema-0" / "report.json").read_bytes()
    again = manyhands(*args, "--resume", "--json", where=tmp_path)
    assert {run["name"] for run in json.loads(again.stdout)["runs"]} == {"ema-0", "ema-0.5"}
    assert (tmp_path / "out" / "ema-0" / "report.json").read_bytes() == before
    assert manyhands(*args, where=tmp_path).returncode == 4


def test_a_sweep_that_changes_what_is_measured_is_shown_without_a_rank(tmp_path: Path) -> None:
    few = ["--set", "evaluation.images=30", "--set", "sweep.sampling.steps=[1, 2]", "--seeds", "2", "--json"]
    said = manyhands("run", *TINY, *few, where=tmp_path)
    assert said.returncode == 0, said.stderr
    result = json.loads(said.stdout)
    assert [(run["seeds"], run["rank"]) for run in result["runs"]] == [(2, None), (2, None)]
    assert result["runs"][0]["name"] == "digits-fedavg-sampling.steps-1"
    assert (tmp_path / "runs" / "digits-fedavg" / "sampling.steps-2" / "seed-1" / "report.html").exists()
