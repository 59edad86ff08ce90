from __future__ import annotations

import contextlib
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def example(name: str) -> Any:
    return runpy.run_path(str(next(path for path in EXAMPLES if path.stem == name)))["main"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short_and_in_three_parts(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert text.index("# Setup") < text.index("# Train") < text.index("# Sample")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_it_imports_is_there_and_it_does_nothing_before_it_is_called(path: Path, tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        assert callable(example(path.stem))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["collafuse", "digits"])
def test_it_draws_digits(tmp_path: Path, name: str) -> None:
    example(name)(tmp_path / "d.png", rounds=1)
    assert (tmp_path / "d.png").exists()


def test_own_data(tmp_path: Path) -> None:
    example("own_data")(tmp_path / "shapes.png", rounds=1, count=40)
    assert (tmp_path / "shapes.png").exists()


@pytest.mark.slow
def test_own_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    example("own_folder")(tmp_path / "pictures", tmp_path / "run", size=8, rounds=1)
    assert (tmp_path / "run" / "figures" / "samples.png").exists()
