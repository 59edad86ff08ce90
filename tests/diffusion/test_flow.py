"""Flow matching: the straight path from the image to the noise, wherever a schedule of betas can be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from manyhands.diffusion.bridge import bridge, target
from manyhands.diffusion.objective import Diffusion, noised
from manyhands.diffusion.schedule import Schedule
from manyhands.diffusion.timestep_cut import TimestepCut, cut_words
from manyhands.errors import RecipeError
from manyhands.privacy.accountant import decibel, epsilon, mu_of

FLOW = Diffusion.model_validate({"target": "flow"})


def test_the_target_brings_its_path_and_another_path_is_refused() -> None:
    assert FLOW.schedule == Schedule(kind="flow")
    assert Diffusion.model_validate({"target": "flow", "schedule": {"steps": 10}}).schedule.steps == 10
    assert Diffusion.model_validate(FLOW.model_dump(mode="json")) == FLOW
    for fields in ({"target": "flow", "schedule": {"kind": "cosine"}}, {"schedule": {"kind": "flow"}}):
        with pytest.raises(ValueError, match="'flow' is both a target and the straight path that it is for"):
            Diffusion.model_validate(fields)


def test_the_path_is_straight_from_the_image_to_noise_alone() -> None:
    alpha, sigma = FLOW.schedule.alpha(), FLOW.schedule.sigma()
    assert torch.allclose(alpha + sigma, torch.ones(1001, dtype=torch.float64))
    assert (alpha[0], alpha[-1], sigma[0], sigma[-1]) == (1, 0, 0, 1)
    assert torch.allclose(alpha.diff(), torch.full((1000,), -1e-3, dtype=torch.float64))


@given(st.integers(1, 1000))
def test_the_velocity_gives_back_the_image_and_the_noise(t: int) -> None:
    x_0, eps = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
    alpha, sigma = FLOW.schedule.levels(torch.tensor([t]), x_0)
    x_t = noised(x_0, eps, alpha, sigma)
    estimates = FLOW.estimates(FLOW.target_of(x_0, eps, alpha, sigma), x_t, alpha, sigma)
    assert all(torch.allclose(a, b) for a, b in zip(estimates, (x_0, eps), strict=True))


def test_min_snr_weighs_an_error_of_the_velocity_as_that_of_the_clean_image() -> None:
    t, device = torch.arange(1, 1001), torch.device("cpu")
    weights = Diffusion.model_validate({"target": "flow", "min_snr": 5}).weights(t, device)
    snr, sigma = FLOW.schedule.snr()[t].float(), FLOW.schedule.sigma()[t].float()
    assert torch.allclose(weights / sigma.square(), snr.clamp(max=5), rtol=1e-4)  # x_0 = x_t - sigma u
    assert torch.isfinite(weights).all()


@pytest.mark.parametrize("kind", ["cosine", "linear", "flow"])
@given(cut=st.integers(0, 900), data=st.data())
def test_noising_to_the_cut_and_over_the_bridge_has_the_mean_and_covariance_of_noising_at_once(
    kind: str, cut: int, data: st.DataObject
) -> None:
    """For an image with mean m and covariance C: alpha_t m, and alpha_t^2 C + sigma_t^2 I."""
    schedule = Schedule.model_validate({"kind": kind})
    t, like = data.draw(st.integers(cut + 1, 1000)), torch.zeros(1, 1, dtype=torch.float64)
    alpha_r, sigma_r = (float(x) for x in bridge(schedule, torch.tensor([t]), torch.tensor([cut]), like))
    alpha, sigma = schedule.alpha().tolist(), schedule.sigma().tolist()
    mean, covariance = torch.tensor([0.5, -1.0]).double(), torch.tensor([[1.0, 0.6], [0.6, 0.5]]).double()
    unit = torch.eye(2, dtype=torch.float64)
    at_cut = alpha[cut] * mean, alpha[cut] ** 2 * covariance + sigma[cut] ** 2 * unit
    assert torch.allclose(alpha_r * at_cut[0], alpha[t] * mean)
    assert torch.allclose(alpha_r**2 * at_cut[1] + sigma_r**2 * unit, alpha[t] ** 2 * covariance + sigma[t] ** 2 * unit)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
@given(cut=st.integers(0, 900), data=st.data())
def test_the_target_of_the_bridge_has_the_expectation_of_the_ordinary_one(
    kind: str, cut: int, data: st.DataObject
) -> None:
    """Of jointly Gaussian numbers, the regression of each target on x_t says its conditional expectation."""
    diffusion = Diffusion.model_validate({"target": kind})
    schedule, t = diffusion.schedule, data.draw(st.integers(cut + 1, 990))
    one = torch.tensor([1.0], dtype=torch.float64)
    at, start = torch.tensor([t]), torch.tensor([cut])
    alpha_r, sigma_r = bridge(schedule, at, start, one)
    (alpha, sigma), (alpha_cut, sigma_cut) = (schedule.levels(which, one) for which in (at, start))

    def bridged(x_cut: Tensor, eps: Tensor) -> float:
        return float(target(diffusion, at, start, x_cut, eps=eps, alpha_r=alpha_r, sigma_r=sigma_r))

    variance, zero = 0.3, 0 * one
    of_cut, of_eps = bridged(one, zero), bridged(zero, one)
    noise_of_cut = float(alpha_cut) ** 2 * variance + float(sigma_cut) ** 2
    ours = of_cut * float(alpha_r) * noise_of_cut + of_eps * float(sigma_r)  # the covariance with x_t
    of_x, of_noise = (float(diffusion.target_of(a, b, alpha, sigma)) for a, b in ((one, zero), (zero, one)))
    plain = of_x * float(alpha) * variance + of_noise * float(sigma)
    assert ours == pytest.approx(plain, rel=1e-6, abs=1e-9)
    assert of_cut * float(alpha_cut) == pytest.approx(of_x, rel=1e-6, abs=1e-9)  # of the mean of x_0


@pytest.mark.parametrize("form", [{"share": 0.4}, {"snr_db": -10.0}, {"epsilon": 5.0}])
def test_a_cut_says_what_a_release_on_the_straight_path_gives_away(form: dict[str, Any]) -> None:
    norm, step = 2.0, TimestepCut.model_validate(form).step(FLOW.schedule, 2.0)
    s = step / 1000
    snr = ((1 - s) / s) ** 2
    assert float(FLOW.schedule.snr()[step]) == pytest.approx(snr)
    if "epsilon" in form:
        assert epsilon(mu_of(snr, norm), 1e-5) <= 5 < epsilon(mu_of(float(FLOW.schedule.snr()[step - 1]), norm), 1e-5)
    if "snr_db" in form:
        assert decibel(snr) <= -10 < decibel(float(FLOW.schedule.snr()[step - 1]))
    assert f"SNR {decibel(snr):.1f} dB" in cut_words(FLOW.schedule, step, norm, 1e-5)


def test_a_level_that_no_timestep_of_the_path_has_is_an_error() -> None:
    with pytest.raises(RecipeError, match="reached at no timestep"):
        TimestepCut.model_validate({"snr_db": -70.0}).step(FLOW.schedule, 1.0)
    assert math.isclose(decibel(float(FLOW.schedule.snr()[999])), -59.99, abs_tol=0.01)
