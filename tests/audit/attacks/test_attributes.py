from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from manyhands.audit.attacks.attributes import (
    NoisyClassifier,
    attribute_scores,
    class_scores,
    classifier,
    majority_attribute_scores,
    majority_class_scores,
)
from manyhands.audit.attacks.reconstruction import release
from tests.audit.crowd import SCHEDULE, rng, striped

LEVELS = (0, 1, 500, 800, 900, 1000)


@pytest.fixture(scope="module")
def attack() -> NoisyClassifier:
    public, labels = striped(400, seed=1)
    return classifier(public, labels, outputs=2, schedule=SCHEDULE, levels=LEVELS, steps=150, rng=rng())


def test_classes_are_read_off_light_noise_and_not_off_pure_noise(attack: NoisyClassifier) -> None:
    x_0, labels = striped(400)
    scores = [class_scores(attack(release(SCHEDULE, x_0, t, rng()), t), labels, rng()) for t in LEVELS[1:]]
    for name in ("accuracy", "f1", "auc"):
        assert scores[0][name]["value"] > 0.99
        values = [interval[name]["value"] for interval in scores]
        assert values[1] >= values[2] > values[3] > values[4]
        assert 0.33 <= values[4] < 0.6  # chance; F1 is less where one class is said more often
    assert class_scores(attack(x_0, 0), labels, rng())["accuracy"]["value"] > 0.99


def test_figures_are_those_of_another_library() -> None:
    logits, labels = torch.randn(200, 3, generator=rng()), torch.randint(3, (200,), generator=rng(1))
    logits[torch.arange(200), labels] += 1
    scores = class_scores(logits, labels, rng())
    shares = logits.double().softmax(1).numpy()
    assert scores["accuracy"]["value"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert scores["f1"]["value"] == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))
    assert scores["auc"]["value"] == pytest.approx(roc_auc_score(labels, shares, multi_class="ovr"))


def test_the_floor_says_the_most_frequent_class() -> None:
    floor = majority_class_scores(torch.tensor([0, 1, 1]), torch.tensor([1, 1, 1, 0]), 3, rng())
    assert floor["accuracy"]["value"] == 0.75
    assert floor["auc"]["value"] == 0.5


def test_attributes_are_read_off_light_noise_each_by_itself() -> None:
    (public, labels), (x_0, true) = striped(400, seed=1), striped(400)
    known, has = (torch.stack([interval == 0, interval == 1], 1) for interval in (labels, true))
    attack = classifier(public, known, outputs=2, schedule=SCHEDULE, levels=LEVELS, steps=150, rng=rng())
    scores = [attribute_scores(attack(release(SCHEDULE, x_0, t, rng()), t), has, rng()) for t in (1, 900, 1000)]
    for name in ("accuracy", "auc"):
        values = [interval[name]["value"] for interval in scores]
        assert values[0] > 0.99
        assert values[0] > values[1] > values[2]
        assert 0.4 < values[2] < 0.6


def test_figures_of_attributes_are_those_of_another_library() -> None:
    has = torch.randint(2, (200, 3), generator=rng(1)).bool()
    logits = torch.randn(200, 3, generator=rng()) + has
    scores = attribute_scores(logits, has, rng())
    assert scores["accuracy"]["value"] == pytest.approx(((logits > 0) == has).double().mean().item())
    assert scores["auc"]["value"] == pytest.approx(roc_auc_score(has, logits, average="macro"))
    assert scores["auc"]["low"] < scores["auc"]["value"] < scores["auc"]["high"]


def test_the_floor_of_attributes_says_what_most_have_and_none_is_left_out_of_accuracy() -> None:
    public = torch.tensor([[True, False], [True, False], [False, False]])
    has = torch.tensor([[True, True], [False, True]])
    floor = majority_attribute_scores(public, has, rng())
    assert (floor["accuracy"]["value"], floor["auc"]["value"]) == (0.25, 0.5)
    assert attribute_scores(torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool), rng())["auc"]["value"] == 0.5
