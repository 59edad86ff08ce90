from __future__ import annotations

import contextlib
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manyhands import Message, Training, UNet

TINY = UNet(size=4, channels=1, classes=0, widths=(8,))
WEIGHTS = TINY.build(0).state_dict()
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
@pytest.mark.parametrize("name", ["own_method", "own_model"])
def test_what_is_ones_own_trains_and_is_evaluated(tmp_path: Path, name: str) -> None:
    example(name)(tmp_path / "d.png", rounds=1)
    assert (tmp_path / "d.png").exists()


@given(seed=st.integers(0, 99), scale=st.sampled_from([1e-3, 1.0, 1e4]))
@settings(max_examples=10)
def test_the_median_stays_within_what_honest_silos_sent(seed: int, scale: float) -> None:
    method = example("own_method").__globals__["Median"](model=TINY, training=Training(steps=1), rounds=2)
    server, rng = method.server(0, dict.fromkeys("abcde", 4)), torch.Generator().manual_seed(seed)
    sent = {silo: {n: torch.randn(w.shape, generator=rng) for n, w in WEIGHTS.items()} for silo in "abcde"}
    sent["c"] = {name: scale * weights for name, weights in sent["c"].items()}
    facts = {"round": 0, "images": 4, "loss": 1.0, "seen": 1, "flops": 1, "withheld": ""}
    messages = {silo: Message("update", tensors, facts) for silo, tensors in sent.items()}
    for silo, message in messages.items():
        server.validate(silo, message)
        assert not server.accumulate(silo, message).taken
    answers = server.handle_barrier("update", messages)
    honest = [sent[silo] for silo in "abde"]
    assert answers["a"].tensors.keys() == WEIGHTS.keys()
    for name, median in answers["a"].tensors.items():
        every = torch.stack([weights[name] for weights in honest])
        assert bool(((every.amin(0) - 1e-5 <= median) & (median <= every.amax(0) + 1e-5)).all()), name


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
