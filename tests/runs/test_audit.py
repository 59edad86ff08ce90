"""An audit attacks what a run really released, and says what came of it where people look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manyhands import compose
from manyhands.audit.effort import Effort
from manyhands.errors import DataError, RunFolderError
from manyhands.report.disclosure import table, words
from manyhands.runs.audit import audit
from manyhands.runs.recipe_file import parse_recipe
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.sweep import INDEX
from manyhands.runs.tradeoff import tradeoff

LITTLE = Effort(denoiser=5, regressor=5, classifier=20, widths=(8,))


def ran(
    folder: Path, data: dict[str, Any] | None = None, partition: dict[str, Any] | None = None, **fields: Any
) -> RunFolder:
    method = {
        "kind": "collafuse", "cut": 0.5, "rounds": 2, "model": {"widths": [8]}, "training": {"batch": 8, "steps": 2},
        **fields,
    }  # fmt: skip
    recipe = {
        "name": "audited", "data": data or {"source": "digits", "size": 8, "limit": 300},
        "partition": partition or {"kind": "iid", "silos": 2},
        "method": method, "sampling": {"steps": 3}, "evaluation": {"images": 0},
    }  # fmt: skip
    for _ in compose(parse_recipe(recipe), folder):
        pass
    return RunFolder(folder)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, Any]]:
    folder = ran(tmp_path_factory.mktemp("audited") / "run", cuts={"silo-1": 0.8})
    return folder, audit(folder, (0.1, 0.5), LITTLE)


def test_it_is_of_what_the_server_holds_and_of_other_cuts(audited: tuple[RunFolder, dict[str, Any]]) -> None:
    _, report = audited
    assert [cut["cut"] for cut in report["cuts"]] == [100, 500, 800]
    assert [release["cut"] for release in report["as_released"]] == [500, 800]
    assert sum(release["identity"]["candidates"] for release in report["as_released"]) == report["images"] == 241
    assert report["public"] == 59
    nearer, farther = (release["identity"]["top_1"]["value"] for release in report["as_released"])
    assert nearer > farther
    assert report["exact_algebra"]["sent"]["recovered"] == 0
    assert report["exact_algebra"]["control"]["recovered"] == 241


def test_it_is_in_the_report_in_the_page_and_in_words(audited: tuple[RunFolder, dict[str, Any]]) -> None:
    folder, report = audited
    assert folder.report["disclosure"] == json.loads(json.dumps(report))
    page = (folder.path / "report.html").read_text()
    assert "<h2>Disclosure</h2>" in page
    assert (folder.figures / "disclosure.png").stat().st_size > 10_000
    assert len(table(report).rows) == 3
    assert "recovers 0 of 241 images" in " ".join(words(report))
    assert all(len(row) == len(table(report).heads) for row in table(report).rows)


def test_where_images_are_released_anew_all_of_them_are_attacked_together(tmp_path: Path) -> None:
    report = audit(ran(tmp_path / "run", release="fresh", rounds=30), (0.5,), LITTLE)
    (cut,) = report["cuts"]
    assert report["releases"] == 4
    alone, together = (cut[name]["identity"]["top_1"]["value"] for name in ("one_release", "all_releases"))
    assert together > alone
    assert report["as_released"] == []
    assert report["exact_algebra"]["sent"]["recovered"] == 0


def test_what_is_inferred_is_named_and_what_is_not_tried_is_said(
    audited: tuple[RunFolder, dict[str, Any]], tmp_path: Path
) -> None:
    sentences = " ".join(words(audited[1]))
    assert "Class inference: " in sentences
    assert "Not tried: attribute inference, since the recipe has no table of attributes" in sentences
    assert "Not tried: class" not in sentences
    assert "it is no LPIPS" in sentences
    assert "feature_distance" in audited[1]["floor"]["reconstruction"]
    assert "Not tried: attribute inference" in (audited[0].path / "report.html").read_text()


def test_attributes_that_the_recipe_deals_by_are_inferred_where_there_are_no_classes(tmp_path: Path) -> None:
    rng, lines = np.random.default_rng(0), ["image,bright,round,unused"]
    for i in range(60):
        bright = i % 2
        pixels = rng.integers(0, 100, (8, 8), dtype=np.uint8) + np.uint8(150 * bright)
        (tmp_path / "faces").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "faces" / f"{i:03}.png")
        lines.append(f"{i:03}.png,{bright},{1 - bright},1")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    data = {"source": {"kind": "folder", "path": str(tmp_path / "faces")}, "size": 8, "classes": 0, "limit": 50}
    partition = {"kind": "attributes", "file": str(tmp_path / "table.csv"), "groups": [["bright"], ["round"]]}
    folder = ran(tmp_path / "run", data=data, partition=partition)
    report = audit(folder, (0.001, 0.999), LITTLE)
    assert report["attributes"] == ["bright", "round"]
    first, *_, last = (cut["one_release"]["attribute_inference"]["auc"]["value"] for cut in report["cuts"])
    assert first > 0.95 > 0.8 > last
    sentences = " ".join(words(report))
    assert "Attribute inference, of bright, round: accuracy" in sentences
    assert "Not tried: class inference, since the images have no classes" in sentences
    heads, body = list(table(report).heads), table(report).rows
    assert heads[-1] == "attributes"
    assert all(len(row) == len(heads) for row in body)
    assert (heads.index("class"), [row[heads.index("class")] for row in body]) == (7, ["-"] * len(body))
    assert (folder.figures / "disclosure.png").stat().st_size > 10_000


@pytest.mark.parametrize("cut", [0, 1])
def test_where_nothing_is_noised_there_is_nothing_to_attack(tmp_path: Path, cut: int) -> None:
    with pytest.raises(DataError, match="there is nothing to attack"):
        audit(ran(tmp_path / "run", cut=cut), (0.5,), LITTLE)


def test_another_method_and_a_run_that_has_not_ended_are_refused(tmp_path: Path) -> None:
    plain = {"kind": "fedavg", "model": {"widths": [8]}, "training": {"batch": 8, "steps": 1}, "rounds": 1}
    recipe = {
        "name": "plain", "data": {"source": "digits", "size": 8, "limit": 100},
        "partition": {"kind": "iid", "silos": 2},
        "method": plain, "sampling": {"steps": 2}, "evaluation": {"images": 0},
    }  # fmt: skip
    for _ in compose(parse_recipe(recipe), tmp_path / "plain"):
        pass
    with pytest.raises(RunFolderError, match="is a run of fedavg; only runs of collafuse and huscf can be audited"):
        audit(RunFolder(tmp_path / "plain"))
    with pytest.raises(RunFolderError, match="there is no such folder"):
        audit(RunFolder(tmp_path / "none"))


def test_a_sweep_over_cuts_becomes_one_table_and_one_picture(tmp_path: Path) -> None:
    index = []
    for cut in (0, 0.5, 1):
        ran(tmp_path / f"cut-{cut}", cut=cut)
        index.append({"values": {"method.cut": cut}, "seed": 0, "folder": f"cut-{cut}"})
    (tmp_path / INDEX).write_text(json.dumps(index))
    table = tradeoff(tmp_path, LITTLE)
    assert [row["cut"] for row in table] == [0, 0.5, 1]
    assert [row["draw_share"] for row in table] == pytest.approx([0, 2 / 3, 1])
    assert table[0]["explained"] == table[0]["picked"] == 1
    assert 1 > (table[1]["explained"] or 0) > 0 == table[2]["explained"]
    assert json.loads((tmp_path / "tradeoff.json").read_text()) == table
    assert (tmp_path / "tradeoff.png").stat().st_size > 10_000
    with pytest.raises(RunFolderError, match="holds no sweep over cuts"):
        tradeoff(tmp_path / "cut-1")
