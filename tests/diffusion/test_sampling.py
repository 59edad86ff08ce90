"""With Gaussian data the right denoiser is known, so the samplers can be held against theory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyhands.diffusion.objective import Diffusion
from manyhands.diffusion.sampling import Sampling, guided, timesteps
from manyhands.diffusion.schedule import Schedule
from manyhands.diffusion.solvers import DenoisingFunction, denoise

MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)


def gaussian(schedule: Schedule) -> DenoisingFunction:
    """The exact E[x_0 | x_t] and E[eps | x_t] where x_0 is normal with MEAN and COVARIANCE."""

    def denoise(x: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        alpha_bar = schedule.alpha_bar()[t]
        marginal = alpha_bar * COVARIANCE + (1 - alpha_bar) * torch.eye(2, dtype=torch.float64)
        centred = x - alpha_bar.sqrt() * MEAN
        x_0 = MEAN + alpha_bar.sqrt() * centred @ torch.linalg.solve(marginal, COVARIANCE)
        eps = (1 - alpha_bar).sqrt() * torch.linalg.solve(marginal, centred.T).T
        return x_0, eps

    return denoise


def draw(schedule: Schedule, eta: float, steps: int, count: int = 40_000) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(count, 2, generator=rng, dtype=torch.float64)
    return denoise(gaussian(schedule), x, schedule, timesteps(schedule.steps, 0, steps), rng, eta=eta)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_samplers_reach_the_mean_and_covariance_of_the_data(kind: str, eta: float) -> None:
    drawn = draw(Schedule.model_validate({"kind": kind}), eta, steps=1000)
    assert torch.allclose(drawn.mean(0), MEAN, atol=0.025)
    assert torch.allclose(drawn.T.cov(), COVARIANCE, atol=0.025)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@given(cut=st.integers(1, 49))
def test_a_chain_run_as_two_intervals_is_the_chain_run_as_one(eta: float, cut: int) -> None:
    schedule, grid = Schedule(), timesteps(1000, 0, 50)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole_rng, rng = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    whole = denoise(gaussian(schedule), x, schedule, grid, whole_rng, eta=eta)
    half = denoise(gaussian(schedule), x, schedule, grid[: cut + 1], rng, eta=eta)
    assert torch.equal(whole, denoise(gaussian(schedule), half, schedule, grid[cut:], rng, eta=eta))


@pytest.mark.parametrize("steps", [25, 50, 333])
def test_sampling_over_two_intervals_is_sampling_over_one_for_every_cut_on_its_grid(steps: int) -> None:
    schedule, sampling = Schedule(), Sampling(steps=steps, clip=None)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rng = torch.Generator()
    whole = sampling.denoise(gaussian(schedule), x, schedule, 1000, 0, rng)
    for cut in timesteps(1000, 0, steps)[1:-1:7]:
        half = sampling.denoise(gaussian(schedule), x, schedule, 1000, cut, rng)
        assert torch.equal(whole, sampling.denoise(gaussian(schedule), half, schedule, cut, 0, rng))


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 1200))
def test_times_fall_from_end_to_end(a: int, b: int, steps: int) -> None:
    grid = timesteps(max(a, b), min(a, b), steps)
    assert grid[0] == max(a, b)
    assert grid[-1] == min(a, b)
    assert grid == sorted(set(grid), reverse=True)
    assert len(grid) <= steps + 1
    if a != b:
        with pytest.raises(ValueError, match="interval"):
            timesteps(min(a, b), max(a, b), steps)


def test_guidance_pushes_from_the_unconditional_output() -> None:
    def network(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        assert labels is not None
        return labels.float().reshape(-1, 1).expand_as(x)

    labels, x = torch.tensor([1, 2]), torch.zeros(2, 3)
    outs = {
        scale: guided(network, Diffusion(target="eps"), labels, 10, scale)(x, 500)[1][:, 0].tolist()
        for scale in (0.0, 1.0, 3.0)
    }
    assert outs == {0.0: [10, 10], 1.0: [1, 2], 3.0: [10 + 3 * (1 - 10), 10 + 3 * (2 - 10)]}
