"""Noise from a secret: normal, and of one path however often it is asked for."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from manyhands.privacy.noise import (
    CELLS_PER_OCTAVE,
    MIN_VARIANCE,
    noise_shares,
    normal,
    path_noise,
    randomise_label,
    uniform,
)

CELL = 2 ** (1 / CELLS_PER_OCTAVE)
VARIANCES = sorted([*np.geomspace(1e-14, 1e13, 60).tolist(), MIN_VARIANCE, 1.0, 1.01, 1.02, 2.0, 1e300, math.inf])


def test_normal_numbers_are_normal_to_their_fourth_moment_and_their_tails() -> None:
    for z in (normal(b"key", 400_000), path_noise(b"key", 0.7, 400_000)):
        assert abs(z.mean()) < 0.01
        assert z.var() == pytest.approx(1, abs=0.01)
        assert (z**4).mean() == pytest.approx(3, abs=0.06)
        assert (abs(z) > 3).mean() == pytest.approx(0.0027, rel=0.1)
    assert len(normal(b"key", 7)) == 7
    u = uniform(b"key", 100_000)
    assert u.min() > 0
    assert u.max() < 1


@pytest.mark.parametrize("variance", VARIANCES)
def test_each_draw_is_of_variance_1(variance: float) -> None:
    assert sum(share**2 for share in noise_shares(variance).values()) == pytest.approx(1, abs=1e-12)


def test_draws_are_of_a_brownian_motion_up_to_one_cell() -> None:
    """The covariance of W(s) and W(t), s < t, is s, or what is left of it at the next lower built variance."""
    inside = [variance for variance in VARIANCES if MIN_VARIANCE <= variance < 1e9]
    for s in inside:
        for t in inside:
            if t > s * CELL:
                common = sum(share * noise_shares(t).get(node, 0.0) for node, share in noise_shares(s).items())
                assert s / CELL * (1 - 1e-9) <= common * math.sqrt(s * t) <= s * (1 + 1e-9)


@pytest.mark.parametrize("count", [2, 50])
@pytest.mark.parametrize("across", [1e-9, 1e-3, 1.0, 30.0])
def test_many_draws_tell_what_the_least_noisy_tells(count: int, across: float) -> None:
    """The best unbiased mean of x + W(u_1), x + W(u_2), ... has the variance of the first, but for a cell."""
    variances = np.geomspace(2.0, 2.0 * (1 + across), count)
    paths = [{node: share * u**0.5 for node, share in noise_shares(float(u)).items()} for u in variances]
    nodes = sorted({node for known in paths for node in known})
    root = np.array([[known.get(node, 0.0) for node in nodes] for known in paths])
    best = 1 / (np.ones(count) @ np.linalg.pinv(root @ root.T, rcond=1e-13, hermitian=True) @ np.ones(count))
    assert 2.0 / CELL * (1 - 1e-6) <= best <= 2.0 * (1 + 1e-4)


def test_increments_are_independent_of_what_came_before_and_of_each_other() -> None:
    levels = (0.5, 1.0, 4.0, 64.0)  # all of them built, so that no cell is between them
    w = [math.sqrt(u) * path_noise(b"key", u, 100_000) for u in levels]
    steps = [w[0], *(after - before for before, after in pairwise(w))]
    assert np.abs(np.corrcoef(steps) - np.eye(4)).max() < 0.015


@pytest.mark.parametrize("epsilon", [1e-300, 0.1, 1.5, 6.0, 100.0])
def test_a_label_is_true_with_the_odds_of_its_epsilon(epsilon: float) -> None:
    drawn = np.array([randomise_label(f"{i}".encode(), 3, 5, epsilon) for i in range(6000)])
    assert (drawn == 3).mean() == pytest.approx(1 / (1 + 4 * math.exp(-epsilon)), abs=0.025)
    wrong = np.bincount(drawn[drawn != 3], minlength=5)[[0, 1, 2, 4]]
    assert not wrong.sum() or abs(wrong / wrong.sum() - 0.25).max() < 3 / math.sqrt(wrong.sum())


def test_a_label_told_at_two_epsilons_tells_what_the_larger_one_tells() -> None:
    """Given the result at the larger one, the result at the smaller one does not depend on the label."""
    pairs = [
        [
            (randomise_label(f"{i}".encode(), y, 3, 2.0), randomise_label(f"{i}".encode(), y, 3, 0.5))
            for i in range(5000)
        ]
        for y in (0, 1)
    ]
    stays = [np.mean([low == 2 for high, low in results if high == 2]) for results in pairs]
    assert abs(stays[0] - stays[1]) < 0.06
    for results in pairs:
        assert np.mean([low != high for high, low in results]) > 0.05
