"""What is claimed of several seeds: intervals that mean what they say, files that say who trained, tables of files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness import bench, case_files, claims, tables

FILES = sorted(case_files.FOLDER.rglob("*.json"))
Table = dict[str, dict[int, dict[str, Any]]]


def table_of(**cases: dict[int, float]) -> Table:
    return {name: {seed: {"figures": {"fid": fid}} for seed, fid in seeds.items()} for name, seeds in cases.items()}


def test_an_interval_is_student_s_and_holds_the_mean_as_often_as_it_says() -> None:
    numbers = [1.0, 2.0, 4.0]
    expected = stats.t.interval(0.95, 2, loc=np.mean(numbers), scale=stats.sem(numbers))
    assert case_files.interval(numbers) == pytest.approx(expected)
    rng = np.random.default_rng(0)
    pairs = [case_files.interval(rng.normal(5, 2, 3).tolist()) for _ in range(1000)]
    assert np.mean([low < 5 < high for low, high in pairs if low is not None and high is not None]) == pytest.approx(
        0.95, abs=0.02
    )
    assert case_files.interval([1.0]) == (None, None)


def test_a_ratio_is_of_common_seeds_and_its_interval_is_that_of_the_inverse_turned_over() -> None:
    both = table_of(a={1: 2.0, 2: 3.0, 3: 2.5, 4: 9.0}, b={1: 1.0, 2: 1.6, 3: 1.1})
    one, other = case_files.ratio(both, "fid", "a", "b"), case_files.ratio(both, "fid", "b", "a")
    assert one is not None
    assert other is not None
    assert one.seeds == (1, 2, 3)
    assert one.value == pytest.approx(7.5 / 3.7) == pytest.approx(1 / other.value)
    assert one.low == pytest.approx(1 / (other.high or math.nan))
    assert 0 < (one.low or 0) < one.value < (one.high or 0)
    assert case_files.ratio(both, "fid", "a", "c") is None


def test_a_seed_that_all_have_alike_moves_no_ratio() -> None:
    hard = {1: 1.0, 2: 10.0, 3: 5.0}  # seeds differ much, ratios little: what is common to both cancels
    figure = case_files.ratio(table_of(a={s: 1.1 * fid for s, fid in hard.items()}, b=hard), "fid", "a", "b")
    assert figure is not None
    assert (figure.low, figure.high) == pytest.approx((1.1, 1.1))


def test_the_worst_case_brings_its_own_interval_and_says_if_another_has_fewer_seeds() -> None:
    one = case_files.Figure(1.0, (1,))
    three = case_files.Figure(2.0, (1, 2, 3), 1.5, 2.5)
    figure = case_files.worst([one, three])
    assert figure is not None
    assert (figure.value, figure.low, figure.high, figure.fewest) == (2.0, 1.5, 2.5, 1)
    assert case_files.worst([one, None]) is None
    assert tables.seeds({"seeds": [1, 2, 3], "fewest": figure.fewest, "figure": 2.0}) == "3 (1)"


def test_one_seed_is_marked_and_what_reaches_across_its_bar_too() -> None:
    row = {"figure": 1.0, "bar": "<= 1.1", "holds": True, "seeds": [1], "interval": None}
    assert (tables.seeds(row), tables.interval(row), tables.verdict(row)) == ("**1**", "-", "yes")
    several = row | {"seeds": [1, 2], "interval": [0.5, 1.5]}
    assert (tables.seeds(several), tables.verdict(several)) == ("2", "yes ~")
    assert tables.verdict(several | {"interval": [0.9, 1.09]}) == "yes"
    assert tables.verdict(several | {"bar": ""}) == "-"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_of_a_case_says_who_trained_it_or_that_nobody_knows(path: Path) -> None:
    case = json.loads(path.read_text())
    assert path == path.parents[1] / f"{case['program']}-{case['scale']}" / (
        f"{case_files.slug(case['case'])}-{case['seed']}.json"
    )
    assert case["trained"]["commit"] or case["trained"]["note"]
    assert case["measured"]["commit"]
    assert case["measured"]["date"]
    assert {"recipe", "machine", "versions", "seconds", "figures"} <= case.keys()


@pytest.mark.parametrize("program", claims.BARS)
def test_a_row_s_figure_seeds_and_interval_are_those_of_the_files(program: str) -> None:
    lines = tables.figures().splitlines()
    result = tables.newest(program) if program in tables.results() else {"figures": {}}
    assert not claims.BARS[program].keys() & result["figures"].keys()  # each is said once
    for name, row in claims.rows(program, "small").items():
        label = tables.DESCRIPTIONS[tables._key(program, name)]
        (line,) = [line for line in lines if line.startswith(f"| {label} |") and line.endswith(f"`{program}.py` |")]
        _, _, _, shown, interval, seeds, _, _ = [cell.strip() for cell in line.split("|")][:8]
        assert shown == tables.shown(row["figure"])
        assert seeds == tables.seeds(row)
        assert interval == tables.interval(row)
        assert (interval != "-") == (len(row["seeds"]) > 1 and row["interval"] is not None)


def test_a_run_is_kept_with_every_commit_that_trained_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, commits = tmp_path / "run", iter(["aaa", "bbb", "ccc"])
    monkeypatch.setattr(bench, "commit", lambda: next(commits))
    shipped = bench.ROOT / "recipes" / "digits-fedavg.toml"
    report = {"seconds": 1.0, "versions": {}}

    def begin() -> None:
        bench._note(folder).write_text(json.dumps(bench._begun(folder, shipped, ["seed=1"])))

    begin()
    folder.mkdir()
    assert case_files.of_run(folder, {}, report)["trained"]["commit"] == "aaa"
    begin()  # it goes on, by another commit
    record = case_files.of_run(folder, {}, report)
    assert record["trained"]["commit"] == "aaa, bbb"
    assert record["recipe"] == {
        "name": "digits-fedavg", "sha256": case_files.digest(shipped.read_text()), "changes": ["seed=1"],
    }  # fmt: skip
    bench._note(folder).unlink()
    begin()  # a folder that an older version began
    assert case_files.of_run(folder, {}, report)["trained"] == {
        "commit": None, "date": bench.began(folder)["date"], "note": "begun by a commit that was not recorded",
    }  # fmt: skip


def test_files_come_back_as_they_were_kept(tmp_path: Path) -> None:
    case = case_files.of_here({"fid": 1.5}, 3.0)
    case_files.keep(tmp_path, "collafuse", "small", "exact 0.4", 2, case)
    cases = case_files.read(tmp_path, "collafuse", "small")
    assert case_files.values(cases, "exact 0.4", "fid") == {2: 1.5}
    assert claims.rows("collafuse", "small", tmp_path)["quality_alone"]["figure"] is None
    with pytest.raises(SystemExit, match="exact 0.5: is none of"):
        case_files.asked("exact 0.5", cases)


def test_what_follows_from_files_is_left_out_of_a_saved_result() -> None:
    claim = {"figure": 1.0, "bar": "<= 2", "holds": True, "seeds": [1], "interval": None}
    result = bench.complete({"figures": {"speed": 3.0}, "claims": {"quality": claim}}, {"speed": ">= 1"}, "small", 0.0)
    assert result["figures"] == {"speed": 3.0, "quality": 1.0}
    assert result["holds"] == {"speed": True, "quality": True}
    assert bench.without_claims(result)["figures"] == {"speed": 3.0}
    assert "claims" not in bench.without_claims(result)
