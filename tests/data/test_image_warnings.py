from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from manyhands import Digits, Experiment, Folder, Images, Silo
from manyhands.data.image_warnings import image_warnings
from tests.conftest import TINY, tiny_fedavg

RNG = torch.Generator().manual_seed(0)


def noise(low: int, high: int, classes: tuple[str, ...] = ("a", "b")) -> Images:
    pixels = torch.randint(low, high, (30, 1, 8, 8), generator=RNG).to(torch.uint8)
    return Images(pixels, torch.arange(30) % len(classes), classes)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (noise(0, 16), "the images of mayo are nearly black: no pixel reaches 64"),
        (noise(200, 256), "the images of mayo are nearly white"),
        (noise(7, 8), "the images of mayo are of one colour, at least 100% of them"),
        (noise(0, 256, ("a",)), "all images are of the one class 'a': set data.classes = 0"),
    ],
)
def test_what_nobody_wants_is_said_with_what_to_set(images: Images, words: str) -> None:
    (line,) = image_warnings({"mayo": images})
    assert line.startswith(words)


def test_silos_alike_are_named_together_and_usual_images_give_no_warning() -> None:
    lines = image_warnings({"a": noise(0, 16), "b": noise(0, 256), "c": noise(0, 16)})
    assert [line.split(":")[0] for line in lines] == ["the images of a, c are nearly black"]
    assert image_warnings({"digits": Digits().load(8), "none": noise(0, 256).subset(np.array([], int))}) == []


def test_a_run_of_twelve_bits_in_sixteen_warns_in_its_report_and_does_what_it_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "p" / label).mkdir(parents=True)
        for number in range(12):
            values = rng.integers(0, 4096, (8, 8), dtype=np.uint16)
            Image.fromarray(values).save(tmp_path / "p" / label / f"{number}.png")
    for intensity, expected in ((None, True), ((0, 4095), False)):
        images = Folder(path=tmp_path / "p", intensity=intensity).load(TINY.size).hold_out(0.2)
        experiment = Experiment(tiny_fedavg(rounds=1), [Silo("a", images)], folder=tmp_path / str(expected))
        list(experiment)
        assert experiment.run_folder is not None
        assert any("nearly black" in line for line in experiment.run_folder.report["problems"]) == expected
