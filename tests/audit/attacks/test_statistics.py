from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from manyhands.audit.attacks.statistics import auc, bootstrap, mean, proportion, true_positives
from tests.audit.crowd import rng


def test_auc_is_that_of_another_library_draws_included() -> None:
    positives = (torch.randn(80, generator=rng()) + 0.5).mul(4).round()
    negatives = torch.randn(150, generator=rng(1)).mul(4).round()
    truth = [1] * 80 + [0] * 150
    assert auc(positives, negatives) == pytest.approx(roc_auc_score(truth, torch.cat([positives, negatives]).numpy()))
    assert auc(positives, positives) == 0.5
    assert auc(negatives + 100, negatives) == 1


def test_true_positives_is_the_curve_at_one_in_a_hundred() -> None:
    positives, negatives = torch.randn(300, generator=rng()) + 2, torch.randn(500, generator=rng(1))
    fpr, tpr, _ = roc_curve([1] * 300 + [0] * 500, torch.cat([positives, negatives]).numpy(), drop_intermediate=False)
    assert true_positives(positives, negatives) == pytest.approx(tpr[fpr <= 0.01].max())
    assert true_positives(negatives, negatives) <= 0.01


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    g, held, within = rng(), 0, 0
    for _ in range(100):
        intervals = bootstrap(mean, torch.randn(60, generator=g), rng=g, resamples=100)
        held += intervals["low"] <= 0 <= intervals["high"]
        share = proportion(torch.rand(60, generator=g) < 0.1)
        within += share["low"] <= 0.1 <= share["high"]
    assert held >= 85
    assert within >= 85


def test_none_of_many_is_not_certainly_none() -> None:
    interval = proportion(torch.zeros(1000, dtype=torch.bool))
    assert interval["value"] == interval["low"] == 0
    assert 0 < interval["high"] < 0.01
    assert proportion(torch.ones(10, dtype=torch.bool))["high"] == 1
