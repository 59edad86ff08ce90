"""Of a run of a cut GAN: what is known comes back, what is not does not, and the report says so in plain words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manyhands import compose
from manyhands.audit.effort import Effort
from manyhands.errors import CheckpointError, DataError
from manyhands.report.disclosure import table, words
from manyhands.runs.audit import audit
from manyhands.runs.recipe_file import parse_recipe
from manyhands.runs.run_folder import RunFolder

LITTLE, LEAST = Effort(inverter=40, descent=100), Effort(inverter=2, descent=2)
LAST = {"generator": {"head": 0, "tail": 4}}


def ran(folder: Path, data: dict[str, Any] | None = None, **fields: Any) -> RunFolder:
    """Two silos with digits: one has a head of one block, the other of two."""
    method = {
        "kind": "huscf", "rounds": 2, "min_head": 0, "model": {"kind": "gan", "width": 16},
        "training": {"batch": 20, "steps": 4},
        "cuts": {"silo-1": LAST | {"discriminator": {"head": 1, "tail": 4}}}, **fields,
    }  # fmt: skip
    recipe = {
        "name": "crossed", "data": {"source": "digits", "size": 8, "limit": 300, **(data or {})},
        "partition": {"kind": "iid", "silos": 2}, "method": method, "evaluation": {"images": 0}, "device": "cpu",
    }  # fmt: skip
    for _ in compose(parse_recipe(recipe), folder):
        pass
    return RunFolder(folder)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, Any]]:
    folder = ran(tmp_path_factory.mktemp("crossed") / "run")
    return folder, audit(folder, effort=LITTLE)


def test_every_head_is_attacked_and_those_of_the_run_are_named(audited: tuple[RunFolder, dict[str, Any]]) -> None:
    _, report = audited
    assert [(head["head"], head["silos"]) for head in report["heads"]] == [(0, ["silo-0"]), (1, ["silo-1"])]
    assert report["own"] == [0, 1]
    assert report["images"] == 40
    assert list(report["heads"][0]["attacks"]) == ["least squares", "descent", "inverter"]
    assert list(report["heads"][1]["attacks"]) == ["descent", "inverter"]


def test_with_the_heads_weights_images_come_back_and_without_them_nothing(
    audited: tuple[RunFolder, dict[str, Any]],
) -> None:
    _, report = audited
    for head in report["heads"]:
        assert head["attacks"]["descent"]["explained"]["value"] > 0.9
        assert head["attacks"]["descent"]["identity"]["top_1"]["value"] == 1
        assert head["labels_of_generated"]["value"] == head["recognised"]["value"] == 1
        assert head["attacks"]["inverter"]["explained"]["value"] > 0.1
        assert all(scores["explained"]["value"] < 0.05 for scores in head["unknown_head"].values())
        assert head["other_images"]["explained"]["value"] < 0.05
        assert head["other_images"]["identity"]["top_1"]["value"] < 0.2
        assert head["recognised_by_unknown"]["value"] < 0.2
    assert report["heads"][0]["attacks"]["least squares"]["label"]["value"] == 1
    assert report["floor"]["reconstruction"]["explained"]["value"] == 0


def test_made_images_come_out_of_the_tail_for_whoever_has_its_weights(
    audited: tuple[RunFolder, dict[str, Any]],
) -> None:
    tails = audited[1]["tails"]
    assert tails["known"]["psnr"]["low"] == 100
    assert tails["unknown"]["psnr"]["high"] < 20


def test_it_is_in_the_report_in_the_page_and_in_words(audited: tuple[RunFolder, dict[str, Any]]) -> None:
    folder, report = audited
    assert folder.report["disclosure"] == json.loads(json.dumps(report, allow_nan=False))
    page = (folder.path / "report.html").read_text()
    assert "<h2>Disclosure</h2>" in page
    assert "least squares" in page
    results = table(report)
    widths = [max(map(len, column)) for column in zip(results.heads, *results.rows, strict=True)]
    assert sum(widths) + 2 * len(widths) - 2 <= 80
    assert "Weak" in " ".join(words(report))
    assert "head 0, head 1. Less: none" in " ".join(words(report))
    assert "that is why min_head is 1" in " ".join(words(report))


def test_later_in_a_round_and_behind_a_guard_less_comes_back(audited: tuple[RunFolder, dict[str, Any]]) -> None:
    _, report = audited
    folder = ran(audited[0].path.parent / "guarded", guard={"clip": 8.0, "noise": 0.3})
    guarded = audit(folder, effort=LITTLE)
    assert report["later"]["step"] == 2
    for head, behind in zip(report["heads"], guarded["heads"], strict=True):
        at_once = head["attacks"]["descent"]["explained"]["value"]
        assert report["later"]["heads"][str(head["head"])]["descent"]["explained"]["value"] < at_once
        assert max(scores["explained"]["value"] for scores in behind["attacks"].values()) < 0.5 < at_once
        assert behind["recognised"]["value"] < head["recognised"]["value"]
    assert "Guard: clipped to the norm 8, with noise 0.3 times that." in words(guarded)


def test_a_gan_without_classes_has_no_labels_to_tell(tmp_path: Path) -> None:
    report = audit(ran(tmp_path / "run", model={"kind": "gan", "width": 16, "classes": 0}, rounds=1), effort=LEAST)
    assert "labels" not in report["floor"]
    assert all(head["labels_of_generated"] is None for head in report["heads"])
    assert len(table(report).rows) > 7
    assert not [line for line in words(report) if line.startswith("Labels")]
    assert "Not tried: class inference, since the images have no classes, or one only." in words(report)


def test_without_public_images_or_the_last_round_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images are held out, and an attacker needs some"):
        audit(ran(tmp_path / "alone", {"held_out": 0.0}))
    folder = ran(tmp_path / "torn")
    (folder.server / "checkpoint-000001.mh").unlink()
    with pytest.raises(CheckpointError, match="checkpoint-000001"):
        audit(folder)
