"""The epsilon of a release, against published figures and an integral."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from manyhands import Schedule
from manyhands.diffusion.release_privacy import box_norm, cut_of_epsilon
from manyhands.errors import RecipeError
from manyhands.privacy.accountant import epsilon, mu_of

LINEAR = Schedule(kind="linear")


@pytest.mark.parametrize(
    ("schedule", "t", "pixels", "published"),
    [
        (LINEAR, 300, 784, 1222),
        (LINEAR, 500, 784, 203),
        (LINEAR, 700, 3072, 82),
        (LINEAR, 900, 784, 4.0),
        (Schedule(), 500, 784, 1765),
        (Schedule(), 900, 3072, 225),
        (Schedule(), 990, 784, 3.7),
    ],
)
def test_the_epsilon_of_one_release_is_that_of_the_tables(
    schedule: Schedule, t: int, pixels: int, published: float
) -> None:
    snr = float(schedule.snr()[t])
    assert epsilon(mu_of(snr, box_norm(pixels)), 1e-5) == pytest.approx(published, rel=0.02)


@given(st.floats(0.05, 8), st.sampled_from([1e-3, 1e-5]))
def test_its_delta_is_the_integral_over_what_is_more_likely(mu: float, delta: float) -> None:
    eps = epsilon(mu, delta)
    x = np.linspace(-12, 12 + mu, 8_001)
    more = np.maximum(stats.norm.pdf(x, mu) - math.exp(eps) * stats.norm.pdf(x), 0)
    measured = float(np.trapezoid(more, x))
    assert measured <= delta * 1.005
    if eps > 0:
        assert measured == pytest.approx(delta, rel=5e-3)


def test_more_releases_more_signal_or_a_larger_norm_give_more_away() -> None:
    base = epsilon(mu_of(0.01, 5.0), 1e-5)
    assert (
        epsilon(mu_of(0.01, 5.0, 4), 1e-5) == epsilon(mu_of(0.04, 5.0), 1e-5) == epsilon(mu_of(0.01, 10.0), 1e-5) > base
    )
    assert epsilon(0.0, 1e-5) == 0
    assert math.isfinite(epsilon(1e4, 1e-9))


@given(st.floats(0.5, 5000))
def test_the_cut_for_a_target_is_the_first_step_that_keeps_it(target: float) -> None:
    norm = box_norm(64)
    try:
        cut = cut_of_epsilon(LINEAR, target, 1e-5, norm)
    except RecipeError:
        assert epsilon(mu_of(float(LINEAR.snr()[-2]), norm), 1e-5) > target
        return
    assert epsilon(mu_of(float(LINEAR.snr()[cut]), norm), 1e-5) <= target
    assert cut == 1 or epsilon(mu_of(float(LINEAR.snr()[cut - 1]), norm), 1e-5) > target


def test_a_target_that_no_step_keeps_is_told() -> None:
    with pytest.raises(RecipeError, match="reached at no timestep.*still has"):
        cut_of_epsilon(LINEAR, 0.01, 1e-5, box_norm(3072))
