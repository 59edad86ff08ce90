"""Features that see how images are made: what was done to a real image, and real ones as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from manyhands import Digits, Evaluation, Evaluator, Iid, split
from manyhands.data.images import as_floats
from manyhands.evaluation import distortions
from manyhands.evaluation.distortions import DISTORTIONS, distorted, distortion_features

SILOS = split(Digits().load(8).hold_out(0.3), Iid(silos=2))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distortions, "STEPS", 400)


def of_kind(kind: int, x: torch.Tensor) -> torch.Tensor:
    return distorted(x, torch.full((len(x),), kind), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", range(len(DISTORTIONS)))
def test_each_distortion_keeps_the_shape_and_all_but_the_first_change_the_image(kind: int) -> None:
    x = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(1)) * 2 - 1
    out = of_kind(kind, x)
    assert out.shape == x.shape
    assert torch.equal(out, x) == (kind == 0)
    assert torch.isfinite(out).all()


def test_only_the_images_of_a_kind_are_changed() -> None:
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    out = distorted(x, torch.tensor([0, 1, 0, 2]), torch.Generator().manual_seed(0))
    assert [torch.equal(*pair) for pair in zip(out, x, strict=True)] == [True, False, True, False]


def test_swapped_halves_have_the_same_pixels() -> None:
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(of_kind(1, x).flatten(1).sort(1).values, x.flatten(1).sort(1).values)


def test_what_is_distorted_is_farther_from_real_images_than_by_the_classifier() -> None:
    by = {name: Evaluator(Evaluation(images=300, features=name), SILOS) for name in ("classifier", "distortions")}
    held = as_floats(by["classifier"].held.pixels)
    for kind in range(1, len(DISTORTIONS)):
        drawn = of_kind(kind, held).clamp(-1, 1)
        ratios = {name: each.measure(each.embed(drawn))["fid"] / each.floor()["fid"] for name, each in by.items()}
        assert ratios["distortions"] > ratios["classifier"] * 1.2, DISTORTIONS[kind].__name__


def test_the_network_is_kept_and_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = distortion_features(SILOS[0].images)
    monkeypatch.setattr(distortions.features, "fit", None)
    assert distortion_features(SILOS[0].images).name == first.name


def test_the_same_images_with_more_classes_have_another_network() -> None:
    more = replace(SILOS[0].images, classes=(*SILOS[0].images.classes, "none"))
    outputs = [distortion_features(images).network.head.out_features for images in (SILOS[0].images, more)]
    assert outputs == [10 * len(DISTORTIONS), 11 * len(DISTORTIONS)]


def test_images_without_labels_have_it_too() -> None:
    unlabelled = replace(SILOS[0].images, labels=None, classes=())
    assert distortion_features(unlabelled).network.head.out_features == len(DISTORTIONS)
