"""Runs side by side: ranked only by one protocol, seeds together, in every form."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from manyhands import Experiment, Local, Sampling
from manyhands.errors import ProtocolError, RecipeError
from manyhands.evaluation.drawing import AT_ONCE
from manyhands.evaluation.spec import Evaluation
from manyhands.methods.base import Method
from manyhands.runs.compare import Comparison
from manyhands.runs.compare_figures import _spent
from manyhands.runs.round import Round
from manyhands.runs.run_folder import RunFolder
from tests.conftest import FEDAVG_ONLY, holding_silos, tiny_fedavg


def run(where: Path, method: Method, steps: int = 2, seed: int = 0, images: int = 60) -> Path:
    evaluation = Evaluation(images=images, every=1, bootstrap=3)
    experiment = Experiment(
        method, holding_silos(), seed, folder=where, device="cpu", sampling=Sampling(steps=steps), evaluation=evaluation
    )
    for _ in experiment:
        pass
    return where


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("compare")
    local = Local.model_validate(tiny_fedavg().model_dump(exclude=FEDAVG_ONLY))
    return {
        "shared": run(root / "shared", tiny_fedavg()),
        "again": run(root / "again", tiny_fedavg(), seed=1),
        "local": run(root / "local", local),
        "steps": run(root / "steps", tiny_fedavg(), steps=3),
        "fewer": run(root / "fewer", tiny_fedavg(), images=50),
        "bare": run(root / "bare", tiny_fedavg(), images=0),
    }


def test_runs_of_one_protocol_are_ranked_best_first(runs: dict[str, Path]) -> None:
    comparison = Comparison([runs["shared"], runs["local"]])
    fids = [RunFolder(runs[entry.name]).report["metrics"]["fid"] for entry in comparison.entries]
    assert fids == sorted(fids)
    table = {row[0]: row[1:] for row in comparison.table().rows}
    assert table["FID"][0].endswith(" *")
    assert not table["FID"][1].endswith(" *")
    assert table["FID"][2] != ""
    assert [record["rank"] for record in comparison.records()] == [1, 2]
    coverage = Comparison([runs["shared"], runs["local"]], by="coverage")
    covers = [RunFolder(runs[entry.name]).report["metrics"]["coverage"] for entry in coverage.entries]
    assert covers == sorted(covers, reverse=True)


def test_a_gan_draws_at_once_and_ranks_with_whoever_draws_in_steps(runs: dict[str, Path], tmp_path: Path) -> None:
    gan = tmp_path / "gan"
    shutil.copytree(runs["local"], gan)
    report = json.loads((gan / "report.json").read_text())
    report["evaluation"]["protocol"]["sampling"] = AT_ONCE
    (gan / "report.json").write_text(json.dumps(report))
    comparison = Comparison([gan, runs["shared"]])
    assert comparison.ranked
    assert "drawn in one step by a GAN" in comparison.note()
    assert "drawn by ddim in 2 steps" in comparison.note()
    with pytest.raises(ProtocolError, match=r"protocol\.sampling\.steps is 2 in .*, 3 in"):
        Comparison([gan, runs["shared"], runs["steps"]])


@pytest.mark.parametrize(
    ("other", "field"),
    [("steps", r"protocol\.sampling\.steps is 2 in .*, 3 in"), ("fewer", r"protocol\.images is 60 in .*, 50 in")],
)
def test_runs_of_two_protocols_are_refused_and_the_field_is_named(
    runs: dict[str, Path], other: str, field: str
) -> None:
    with pytest.raises(ProtocolError, match=field):
        Comparison([runs["shared"], runs[other]])
    shown = Comparison([runs["shared"], runs[other]], unranked=True)
    assert not any("*" in cell for row in shown.table().rows for cell in row)
    assert [record["rank"] for record in shown.records()] == [None, None]
    assert "Not ranked: protocol." in shown.markdown()


def test_a_run_that_was_not_evaluated_is_named(runs: dict[str, Path]) -> None:
    with pytest.raises(ProtocolError, match="was not evaluated; `manyhands evaluate"):
        Comparison([runs["shared"], runs["bare"]])


def test_work_is_the_mean_over_all_silos_also_those_that_rested() -> None:
    done = Round(number=0, rounds=1, seconds=1.0, images_seen=5, bytes_up=10, bytes_down=20, flops={"a": 8, "b": 4})
    assert _spent(done, "flops", silos=4) == 3
    assert _spent(done, "bytes", silos=4) == 30


def test_runs_that_differ_in_their_seed_alone_are_one_column(runs: dict[str, Path]) -> None:
    comparison = Comparison([runs["shared"], runs["local"], runs["again"]])
    assert sorted(len(entry.runs) for entry in comparison.entries) == [1, 2]
    two = next(entry for entry in comparison.entries if len(entry.runs) == 2)
    fids = [RunFolder(runs[name]).report["metrics"]["fid"] for name in ("shared", "again")]
    assert two.mean("fid") == pytest.approx(sum(fids) / 2)
    assert two.spread("fid") == pytest.approx(abs(fids[0] - fids[1]) / 2**0.5)


def test_a_figure_that_nobody_has_is_named(runs: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match="--by fidd: no run has such a figure; did you mean 'fid'"):
        Comparison([runs["shared"]], by="fidd")


def test_it_writes_tables_and_figures_that_agree(runs: dict[str, Path], tmp_path: Path) -> None:
    comparison = Comparison([runs["shared"], runs["local"]])
    files = {path.name for path in comparison.write(tmp_path / "out")}
    assert files == {
        "table.md", "table.csv", "table.json", "quality-rounds.png", "quality-bytes.png", "quality-flops.png",
        "silos.png", "partition.png", "samples.png",
    }  # fmt: skip
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, record in zip(rows, table["runs"], strict=True):
        assert float(row["fid"]) == record["fid"] == RunFolder(Path(record["runs"])).report["metrics"]["fid"]
        assert float(row["bytes_up"]) == record["bytes_up"]
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    verdicts = [line for line in lines if line.startswith("* ")]
    assert verdicts == lines[:2] == [f"* {record['name']}: {record['words']}" for record in table["runs"]]
    assert lines[3].startswith("|  | ")
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    with (
        Image.open(tmp_path / "out" / "samples.png") as both,
        Image.open(runs["local"] / "figures" / "samples.png") as one,
    ):
        assert both.width > 2 * one.width


def test_names_of_folders_are_taken_as_they_are(runs: dict[str, Path], tmp_path: Path) -> None:
    odd = tmp_path / "other$x_^$|y"
    shutil.copytree(runs["local"], odd)
    comparison = Comparison([runs["shared"], odd])
    assert {path.name for path in comparison.write(tmp_path / "out")} >= {"quality-rounds.png", "silos.png"}
    rows = [line for line in comparison.markdown().splitlines() if line.startswith("| ")]
    assert len({len(re.split(r"(?<!\\)\|", row)) for row in rows}) == 1
    with pytest.raises(RecipeError, match="twice"):
        Comparison([odd, odd])


def test_what_noise_can_have_is_in_brackets_where_a_run_is_far_from_its_floor(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    for name, times in (("near", 2), ("far", 30)):
        shutil.copytree(runs["shared"], tmp_path / name)
        report = json.loads((tmp_path / name / "report.json").read_text())
        report["metrics"] |= {"fid": times * report["floor"]["fid"], "precision": 0.5 + times / 100}
        (tmp_path / name / "report.json").write_text(json.dumps(report))
        recipe = (tmp_path / name / "recipe.toml").read_text()
        (tmp_path / name / "recipe.toml").write_text(recipe.replace("rounds = 3", f"rounds = {times}"))
    comparison = Comparison([tmp_path / "near", tmp_path / "far"], by="precision")
    assert [entry.name for entry in comparison.entries] == ["near", "far"]  # though its precision is higher
    cells = dict(
        zip(
            ["name", "near", "far"], next(row for row in comparison.table().rows if row[0] == "precision"), strict=False
        )
    )
    assert cells["far"].startswith("(0.8)")
    assert not cells["near"].startswith("(")
    assert "*" not in cells["far"]
    assert "Do not quote values in brackets" in comparison.note()
    assert (
        comparison.verdicts()[1]
        == "far: FID is 30 times that between real images: the samples do not look like the training images yet"
    )


def test_deviations_of_one_table_are_of_one_kind(runs: dict[str, Path]) -> None:
    draws = Comparison([runs["shared"], runs["local"]])
    assert "random halves of the samples" in draws.note()
    assert all(record["fid_spread"] for record in draws.records())
    seeds = Comparison([runs["shared"], runs["again"], runs["local"]])
    assert "the seeds of training" in seeds.note()
    spreads = {record["seeds"]: record["fid_spread"] for record in seeds.records()}
    fids = [RunFolder(runs[name]).report["metrics"]["fid"] for name in ("shared", "again")]
    assert spreads == {2: pytest.approx(abs(fids[0] - fids[1]) / 2**0.5), 1: None}
