"""For Gaussian images the flow of probability is known exactly, so that solvers can be held against it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from manyhands.diffusion.objective import Diffusion
from manyhands.diffusion.sampling import Sampling, timesteps
from manyhands.diffusion.schedule import Schedule
from manyhands.diffusion.solvers import DenoisingFunction, denoise, dpm_solver, heun

MEAN, VARIANCE = 0.5, 0.3
LONG = {kind: Schedule.model_validate({"kind": kind, "steps": 64_000}) for kind in ("cosine", "flow")}


def gaussian(schedule: Schedule) -> DenoisingFunction:
    """The exact E[x_0 | x_t] and E[eps | x_t] where x_0 is normal with MEAN and VARIANCE."""
    alpha, sigma = schedule.alpha().tolist(), schedule.sigma().tolist()

    def estimates(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        off = (x - alpha[t] * MEAN) / (alpha[t] ** 2 * VARIANCE + sigma[t] ** 2)
        return MEAN + alpha[t] * VARIANCE * off, sigma[t] * off

    return estimates


def exact(schedule: Schedule, x: Tensor, t: int, s: int) -> Tensor:
    """Where the flow of probability takes x from timestep t to s: as many deviations from the mean."""
    alpha, sigma = schedule.alpha(), schedule.sigma()
    there, here = ((alpha[i].square() * VARIANCE + sigma[i].square()).sqrt() for i in (t, s))
    return alpha[s] * MEAN + here / there * (x - alpha[t] * MEAN)


SOLVERS: dict[str, Any] = {
    "ddim": lambda *given: denoise(*given, torch.Generator()),
    "heun": heun,
    "dpm++": dpm_solver,
}
X = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(-1, 1)


def error(solver: str, kind: str, steps: int, t: int, s: int) -> float:
    schedule = LONG[kind]
    out = SOLVERS[solver](gaussian(schedule), X, schedule, timesteps(t, s, steps))
    return float((out - exact(schedule, X, t, s)).abs().max())


@pytest.mark.parametrize("kind", ["cosine", "flow"])
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2), ("dpm++", 2)])
def test_the_error_falls_with_the_order_of_the_solver(solver: str, order: int, kind: str) -> None:
    errors = [error(solver, kind, steps, 48_000, 16_000) for steps in (40, 80, 160)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.2)


@pytest.mark.parametrize("kind", ["cosine", "flow"])
@pytest.mark.parametrize("solver", ["heun", "dpm++"])
def test_a_few_steps_of_second_order_over_the_whole_path_are_better_than_as_many_of_first(
    solver: str, kind: str
) -> None:
    assert error(solver, kind, 20, 64_000, 0) < 0.6 * error("ddim", kind, 20, 64_000, 0) < 0.1


@pytest.mark.parametrize("solver", ["heun", "dpm++"])
@pytest.mark.parametrize("kind", ["cosine", "flow"])
def test_one_step_is_ddim_and_no_step_changes_nothing(solver: str, kind: str) -> None:
    assert error(solver, kind, 1, 40_000, 0) == pytest.approx(error("ddim", kind, 1, 40_000, 0), abs=1e-9)
    assert torch.equal(SOLVERS[solver](gaussian(LONG[kind]), X, LONG[kind], [7]), X)


def test_a_step_of_euler_on_the_straight_path_follows_the_velocity() -> None:
    schedule = Schedule(kind="flow", steps=10)
    x_0, eps = gaussian(schedule)(X, 8)
    moved = Sampling(sampler="euler", clip=None).denoise(gaussian(schedule), X, schedule, 8, 5, torch.Generator(), 1)
    assert torch.allclose(moved, X - 0.3 * (eps - x_0))


def test_heun_on_the_straight_path_is_the_trapezoid_of_the_velocity() -> None:
    schedule = Schedule(kind="flow", steps=10)

    def velocity(x: Tensor, t: int) -> Tensor:
        x_0, eps = gaussian(schedule)(x, t)
        return eps - x_0

    predicted = X - 0.3 * velocity(X, 8)
    middle = X - 0.15 * (velocity(X, 8) + velocity(predicted, 5))
    expected = middle - 0.2 * velocity(middle, 5)
    assert torch.allclose(heun(gaussian(schedule), X, schedule, [8, 5, 3]), expected)


@pytest.mark.parametrize("kind", ["cosine", "flow"])
@pytest.mark.parametrize("steps", [4, 10])
def test_dpm_solver_is_that_of_diffusers(kind: str, steps: int) -> None:
    schedule = Schedule.model_validate({"kind": kind})
    theirs = DPMSolverMultistepScheduler(
        1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample" if kind == "cosine" else "flow_prediction",
        timestep_spacing="trailing",
        use_flow_sigmas=kind == "flow",
        lower_order_final=False,
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(steps)
    grid, x = timesteps(1000, 0, steps), X.float()
    if kind == "flow":
        theirs.sigmas = torch.tensor([t / 1000 for t in grid])
    for t, name in zip(grid[:-1], theirs.timesteps, strict=True):
        x_0, eps = gaussian(schedule)(x, t)
        x = theirs.step(x_0 if kind == "cosine" else eps - x_0, name, x).prev_sample
    ours = Sampling(sampler="dpm++", steps=steps, clip=None).denoise(
        gaussian(schedule), X.float(), schedule, 1000, 0, torch.Generator()
    )
    assert torch.allclose(ours, x, atol=2e-4 if kind == "cosine" else 1e-4)


def test_euler_is_that_of_diffusers() -> None:
    schedule, theirs, x = Schedule(kind="flow"), FlowMatchEulerDiscreteScheduler(1000), X.float()
    theirs.set_timesteps(sigmas=torch.linspace(1, 0.1, 10).tolist())
    for t in theirs.timesteps:
        x_0, eps = gaussian(schedule)(x, round(float(t)))
        x = theirs.step(eps - x_0, t, x).prev_sample
    ours = Sampling(sampler="euler", steps=10, clip=None)
    assert torch.allclose(
        ours.denoise(gaussian(schedule), X.float(), schedule, 1000, 0, torch.Generator()), x, atol=1e-5
    )


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "dpm++"])
def test_every_sampler_reaches_the_data_over_the_straight_path(sampler: str) -> None:
    schedule, rng = Schedule(kind="flow"), torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=rng, dtype=torch.float64)
    settings = Sampling.model_validate({"sampler": sampler, "steps": 200, "clip": None})
    half = settings.denoise(gaussian(schedule), x, schedule, 1000, 400, rng)
    drawn = settings.denoise(gaussian(schedule), half, schedule, 400, 0, rng)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert drawn.var().item() == pytest.approx(VARIANCE, abs=0.02)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "dpm++"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_passes_that_are_foretold_are_taken(sampler: str, steps: int) -> None:
    schedule, calls = Schedule(), []

    def counted(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        calls.append(t)
        return gaussian(schedule)(x, t)

    settings = Sampling.model_validate({"sampler": sampler, "steps": steps})
    settings.denoise(counted, X, schedule, 1000, 0, torch.Generator())
    assert len(calls) == settings.passes(steps)
    assert 0 not in calls  # no network is trained there


@pytest.mark.parametrize("sampler", ["heun", "dpm++"])
def test_a_clean_image_is_clipped_at_each_step(sampler: str) -> None:
    settings = Sampling.model_validate({"sampler": sampler, "steps": 6, "clip": 0.25})
    far = lambda x, _: (torch.full_like(x, 9.0), torch.zeros_like(x))  # noqa: E731
    out = settings.denoise(far, X, Diffusion().schedule, 1000, 0, torch.Generator())
    assert torch.allclose(out, torch.full_like(out, 0.25))
