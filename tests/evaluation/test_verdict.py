"""How far from real images a run is comes first, in words, so that nobody quotes what noise can have, too."""

from __future__ import annotations

import pytest
import torch

from manyhands import Digits, Iid, split
from manyhands.evaluation import verdict
from manyhands.evaluation.evaluator import Evaluator
from manyhands.evaluation.spec import Evaluation
from manyhands.report.quality import figures_table


def of(times: float) -> str:
    return verdict.words({"fid": times * 0.1}, {"fid": 0.1})


def test_noise_has_precision_and_density_of_real_images_and_the_verdict_says_otherwise_first() -> None:
    evaluator = Evaluator(Evaluation(bootstrap=0), split(Digits().load(8).hold_out(0.2), Iid(silos=1)))
    median, rng = evaluator.real.pixels.float().median(0).values, torch.Generator().manual_seed(0)
    noise = (median + 15 * torch.randn(evaluator.held.pixels.shape, generator=rng)).clamp(0, 255).byte()
    report = evaluator.verdict([noise])
    metrics, floor = report["metrics"], report["floor"]
    assert metrics["precision"] > floor["precision"]
    assert metrics["density"] > floor["density"]
    assert metrics["label_match"] < 0.2
    assert next(iter(report)) == "words"
    assert report["words"].endswith(
        "times that between real images: the samples do not look like the training images yet"
    )
    assert report["notes"][0].startswith("precision and density: do not quote them")
    rows = [row[0] for row in figures_table(report).rows]
    assert "precision (do not quote)" in rows
    assert "recall" in rows

    real = evaluator.verdict([evaluator.held.pixels])
    assert real["words"] == "FID is 1.0 times that between real images: about as good as real images"
    assert not [note for note in real["notes"] if note.startswith("precision")]
    assert "precision" in [row[0] for row in figures_table(real).rows]


def test_the_farther_the_harder_the_words() -> None:
    assert of(23) == "FID is 23 times that between real images: the samples do not look like the training images yet"
    ends = [of(times).split(": ")[1] for times in (1, 1.6, 9.9, 10.1, 20.1, 5000)]
    assert len(dict.fromkeys(ends)) == 4
    assert ends[1] == ends[2]
    assert ends[4] == ends[5]
    assert "5,000 times" in of(5000)


def test_of_few_images_nothing_good_is_said() -> None:
    for times in (1, 9, 19):
        assert verdict.words({"fid": times}, {"fid": 1}, few=True).endswith(
            "there are too few images to say how good these are"
        )
    assert verdict.words({"fid": 21}, {"fid": 1}, few=True) == of(21)  # it is farther still


@pytest.mark.parametrize(("metrics", "floor"), [({}, {}), ({"fid": 1.0}, {}), ({"fid": 1.0}, {"fid": 0.0})])
def test_where_there_is_no_floor_nothing_is_said(metrics: dict[str, float], floor: dict[str, float]) -> None:
    assert verdict.words(metrics, floor) == ""
    assert verdict.caution(metrics, floor) == ""
    assert not verdict.is_far(metrics, floor)


def test_too_few_images_for_a_covariance_are_noted() -> None:
    figures = {"fid": 1.0, "memorised": 0.0}
    assert verdict.notes(figures, figures, images=65, dimensions=64) == []
    (note,) = verdict.notes(figures, figures, images=64, dimensions=64)
    assert note.startswith("FID: 64 images are too few for a full covariance of 64 features")
