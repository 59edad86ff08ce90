"""`manyhands data`: what is prepared, what is there, and that it can be deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manyhands.data.sources import decoding, image_files
from tests.command import manyhands
from tests.data.test_image_store import write_pictures

RECIPE = """
name = "toy"
data = { size = 4, source = { kind = "folder", path = "pictures" } }
partition = { kind = "iid", silos = 2 }
method = { kind = "fedavg", rounds = 1, training = { steps = 1, batch = 4 }, model = { kind = "unet", widths = [8] } }
evaluation = { images = 0 }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_pictures(tmp_path / "pictures")
    (tmp_path / "toy.toml").write_text(RECIPE)
    monkeypatch.setenv("MANYHANDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_files, "MIN_STORED", 10)
    monkeypatch.setattr(decoding, "usable_cores", lambda: 1)
    return tmp_path


def test_images_are_prepared_listed_and_cleared(folder: Path) -> None:
    done = manyhands("data", "prepare", "toy.toml", where=folder)
    *_, progress, contents = done.stderr.splitlines()
    assert progress == f"preparing {Path('pictures')}: 24 of 24, 0:00 left"
    assert contents.startswith("24 images, ")
    assert done.stdout.splitlines()[1].split()[:7] == ["pictures", "4", "x", "4", "x", "1", "24"]
    again = manyhands("data", "prepare", "toy.toml", "--json", where=folder)
    (entry,) = json.loads(again.stdout)["prepared"]
    assert (entry["source"], entry["shape"], entry["skipped"], again.stderr) == ("pictures", [24, 1, 4, 4], 0, "")
    assert json.loads(manyhands("data", "list", "--json", where=folder).stdout)["prepared"] == [entry]
    assert "pictures" in manyhands("data", "list", where=folder).stdout
    assert json.loads(manyhands("data", "clear", "--json", where=folder).stdout) == {"freed_bytes": entry["bytes"]}
    assert manyhands("data", "list", where=folder).stdout == "no images are prepared\n"


def test_a_run_shows_that_it_prepares_images_and_the_next_does_not_prepare_them(folder: Path) -> None:
    first, second = (manyhands("run", "toy.toml", "--out", name, where=folder) for name in ("one", "two"))
    assert first.returncode == second.returncode == 0
    assert "preparing pictures: 24 of 24" in first.stderr
    assert "preparing" not in second.stderr


def test_sets_of_few_pictures_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MIN_STORED", 100)
    assert manyhands("data", "prepare", "toy.toml", where=folder).stdout.startswith("nothing is kept: ")
