"""The report in a real browser, and what it says."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.browser import CHROMIUM, opened, screenshot
from manyhands import Experiment, Sampling
from manyhands.errors import RunFolderError
from manyhands.evaluation import verdict
from manyhands.evaluation.spec import Evaluation
from manyhands.formatting import count_text, number_text
from manyhands.report import page
from manyhands.runs.compare import Comparison
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.tensorboard import TensorBoardLogger
from tests.conftest import holding_silos, tiny_fedavg

needs_chromium = pytest.mark.skipif(shutil.which(CHROMIUM) is None, reason="Debian's chromium is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    where = tmp_path_factory.mktemp("report") / "run"
    evaluation = Evaluation(images=60, every=1, bootstrap=3, cas=True)
    experiment = Experiment(
        tiny_fedavg(rounds=4), holding_silos(3), folder=where, device="cpu", sampling=Sampling(steps=2),
        evaluation=evaluation, skipped=("broken<b>.png",),
    )  # fmt: skip
    for _ in experiment:
        pass
    return RunFolder(where)


def test_the_page_asks_nothing_of_the_network_and_escapes_what_it_is_told(folder: RunFolder) -> None:
    page = (folder.path / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "url(" not in page
    assert "@import" not in page
    assert "broken&lt;b&gt;.png" in page
    assert "<b>.png" not in page


def test_it_says_what_a_reader_asks(folder: RunFolder) -> None:
    page = (folder.path / "report.html").read_text()
    facts = folder.report
    for name in ("FID", "KID", "coverage", "CAS accuracy", "asked class recognised"):
        assert f"<dt>{name}</dt>" in page
    assert (
        f"<dd>{number_text(facts['metrics']['fid'])}<small>&plusmn; {number_text(facts['evaluation']['spread']['fid'])}"
        in page
    )
    assert f"real images: {number_text(facts['floor']['fid'])}" in page
    assert page.index(f"<b>{verdict.of_report(facts)}</b>") < page.index('class="cards"')
    for heading in ("Warnings", "Samples", "Quality over rounds", "Training", "Silos", "Who holds what"):
        assert f"<h2>{heading}</h2>" in page
    left = page[page.index("<h2>What left the silos, and what can be computed from it</h2>") :]
    assert left.index("the weights of its network, which the server can read") < left.index(
        "No message contains: images"
    )
    assert "this is no guarantee: content may be computed from what leaves" in left
    assert "60 samples were compared with 180 training images" in page
    assert "McMahan" in page
    assert page.count("<img") == 4, "a picture for each evaluated round"


def test_what_gives_images_away_is_read_before_anything_else(folder: RunFolder) -> None:
    assert not folder.report["gives_away"], "a round has several steps"
    html = page.page(folder, folder.report | {"gives_away": ["silo-0: This run gives its images away<b>."]})
    first = html[html.index("</h1>") :]
    assert first.startswith('</h1><section class="warn" role="note"><p><b>silo-0: This run gives its images away&lt;b')
    assert "gives its images away" not in page.page(folder, folder.report)


def test_names_that_are_markup_are_shown_as_text(folder: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(Path(shutil.copytree(folder.path, tmp_path / "copy")))
    for name in ("report.json", "journal.jsonl", "ledger.json"):
        path = copy.path / name
        path.write_text(path.read_text().replace("silo-0", "<script>silo</script>"))
    report = copy.report
    recipe = (copy.path / "recipe.toml").read_text()
    (copy.path / "recipe.toml").write_text('name = "<script>run</script>"\n' + re.sub(r"(?m)^name = .*\n", "", recipe))
    html = page.page(copy, report | {"classes": [f"<script>{name}</script>" for name in report["classes"]]})
    shown = re.findall(r"&lt;script&gt;(\w+)&lt;/script&gt;", html)
    assert {"run", "silo", report["classes"][0]} <= set(shown)
    assert html.count("<script>") == 1, "the page's own"


def test_missing_silos_and_withheld_updates_are_warned_of(folder: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(Path(shutil.copytree(folder.path, tmp_path / "copy")))
    done = replace(copy.rounds[1], missing={"silo-1": "its loss is not finite"})
    lines = (copy.path / "journal.jsonl").read_text().splitlines()
    with (copy.path / "journal.jsonl").open("w") as file:
        file.write(lines[0] + "\n")
    copy.append(done)
    page.write(copy, copy.report)
    assert "round 2: silo-1: its loss is not finite" in (copy.path / "report.html").read_text()


def test_a_report_of_another_version_is_an_error_in_words(folder: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(Path(shutil.copytree(folder.path, tmp_path / "copy")))
    kept = copy.report
    copy.write("report.json", {name: kept[name] for name in kept if name != "pooled"})
    with pytest.raises(RunFolderError, match="another version: it has no 'pooled'"):
        page.write(copy, copy.report)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"silos": {}}'])
def test_a_report_that_is_none_is_an_error_in_words(folder: RunFolder, tmp_path: Path, content: str) -> None:
    copy = RunFolder(Path(shutil.copytree(folder.path, tmp_path / "copy")))
    (copy.path / "report.json").write_text(content)
    for ask in (lambda: copy.report, lambda: Comparison([copy.path, folder.path])):
        with pytest.raises(RunFolderError, match="report.json"):
            ask()


def test_a_report_that_cannot_be_drawn_changes_nothing(folder: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(Path(shutil.copytree(folder.path, tmp_path / "copy")))
    before = (copy.path / "report.json").read_text()
    with pytest.raises(RunFolderError):
        page.write(copy, {name: value for name, value in copy.report.items() if name != "pooled"})
    assert (copy.path / "report.json").read_text() == before
    shutil.rmtree(copy.figures)
    page.write(copy, copy.report)
    assert (copy.figures / "loss.png").exists()


@needs_chromium
def test_it_opens_in_a_browser_without_an_error_and_the_slider_moves(folder: RunFolder, tmp_path: Path) -> None:
    page = folder.path / "report.html"
    seen = opened(page)
    assert seen.errors == []
    assert len(re.findall(r"<svg", seen.dom)) == 3
    assert re.findall(r"<output>(\d+)</output>", seen.dom) == ["4"]
    moved = tmp_path / "moved.html"
    push = 'const s = document.querySelector("input"); s.value = 1; s.dispatchEvent(new Event("input"));'
    moved.write_text(page.read_text().replace("</script></body>", f"{push}</script></body>"))
    seen = opened(moved)
    assert seen.errors == []
    pictures = re.findall(r"<img[^>]*alt=\"samples after round (\d)\"[^>]*?( hidden=\"\")?>", seen.dom)
    assert [number for number, hidden in pictures if not hidden] == ["2"]
    assert re.search(r"aria-valuetext=\"round 2\"", seen.dom)


@needs_chromium
def test_an_error_on_a_page_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><title>bad</title><script>nothing.there()</script>")
    assert "nothing is not defined" in opened(page).errors[0]


@needs_chromium
def test_light_and_dark_and_a_phone(folder: RunFolder, tmp_path: Path) -> None:
    page = folder.path / "report.html"
    light, dark = (screenshot(page, tmp_path / f"{theme}.png", dark=theme == "dark") for theme in ("light", "dark"))
    assert np.asarray(Image.open(light).convert("L")).mean() > 180
    assert np.asarray(Image.open(dark).convert("L")).mean() < 80
    wide = tmp_path / "wide.html"
    measure = "document.title = 'overflow ' + (document.documentElement.scrollWidth > innerWidth);"
    wide.write_text(page.read_text().replace("</script></body>", f"{measure}</script></body>"))
    assert "<title>overflow false</title>" in opened(wide, width=500).dom


def test_figures_are_short_and_counts_have_units() -> None:
    assert [number_text(x) for x in (0.123456, 12.345, 1234.5, None, 0)] == ["0.123", "12.3", "1,234", "-", "0"]
    assert [count_text(x) for x in (12, 3400, 289e9, 1.44e12, 2e18)] == ["12", "3.4 k", "289 G", "1.44 T", "2e+03 P"]


def test_tensorboard_has_the_scalars_and_grids_of_the_report(folder: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(folder)
    for done in folder.rounds:
        logger.show(done)
    logger.close()
    read = EventAccumulator(str(folder.path / "tensorboard"))
    read.Reload()
    assert [round(event.value, 4) for event in read.Scalars("loss/mean")] == [round(d.loss, 4) for d in folder.rounds]
    assert read.Scalars("metrics/fid")[-1].value == pytest.approx(folder.report["metrics"]["fid"])
    assert [event.step for event in read.Images("samples")] == [1, 2, 3, 4]
    assert read.Images("partition")


def test_a_board_that_was_never_shown_a_round_writes_nothing(tmp_path: Path) -> None:
    TensorBoardLogger(RunFolder(tmp_path / "run")).close()
    assert not (tmp_path / "run").exists()


def test_chromium_is_asked_for_by_ci() -> None:
    text = (Path(__file__).parents[2] / ".ci" / "run").read_text()
    assert re.search(r"install.*chromium", text)
    assert subprocess.run(["bash", "-n", str(Path(__file__).parents[2] / ".ci" / "run")], check=False).returncode == 0
