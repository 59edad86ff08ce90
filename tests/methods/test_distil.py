"""Of Gaussian data the right denoiser is known, and a DDIM step of it is affine: so is what a student must learn."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from manyhands import Diffusion
from manyhands.diffusion.objective import NoisePredictor
from manyhands.diffusion.sampling import guided, timesteps
from manyhands.diffusion.solvers import denoise
from manyhands.methods.distil import Distil, jump, loss
from tests.conftest import TINY

MEAN, VARIANCE = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64), 0.3
NO_LABEL = 2
TARGETS = [Diffusion.model_validate({"target": target}) for target in ("eps", "v")]


def output(diffusion: Diffusion, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
    """What a network says that thinks the clean image is this."""
    alpha, sigma = diffusion.schedule.levels(t, x_t)
    eps = (x_t - alpha * x_0) / sigma
    return eps if diffusion.target == "eps" else alpha * eps - sigma * x_0


def mean_of(labels: Tensor | None) -> Tensor:
    return MEAN[:1] if labels is None else MEAN[labels].reshape(-1, 1)


def teacher_of(diffusion: Diffusion) -> NoisePredictor:
    """The exact denoiser of normal images, each class with a mean of its own."""

    def network(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = diffusion.schedule.levels(t, x_t)
        mean = mean_of(labels)
        x_0 = mean + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x_t - alpha * mean)
        return output(diffusion, x_t, t, x_0)

    return network


def slope(diffusion: Diffusion, at: list[int]) -> float:
    """By what DDIM over these steps multiplies the distance to the mean."""
    alpha_bar, product = diffusion.schedule.alpha_bar().tolist(), 1.0
    for t, s in pairwise(at):
        a, b = alpha_bar[t], alpha_bar[s]
        product *= ((a * b) ** 0.5 * VARIANCE + ((1 - a) * (1 - b)) ** 0.5) / (a * VARIANCE + 1 - a)
    return product


def student_of(diffusion: Diffusion, grid: list[int], slopes: dict[int, float], push: float = 0) -> NoisePredictor:
    """What takes every x_s of the grid in one step to alpha' mean + slope (x_s - alpha mean)."""
    after = dict(pairwise(grid))

    def network(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        then = torch.tensor([after[s] for s in t.tolist()])
        (a, sigma), (b, sigma_then) = (diffusion.schedule.levels(at, x_t) for at in (t, then))
        mean, k = mean_of(labels), torch.tensor([[slopes[s]] for s in t.tolist()], dtype=torch.float64)
        landed = b * mean + k * (x_t - a * mean)
        x_0 = (sigma * landed - sigma_then * x_t) / (sigma * b - sigma_then * a)
        return output(diffusion, x_t, t, x_0 + push * x_t)

    return network


def images(count: int = 64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (count,), generator=rng)
    x_0 = mean_of(labels) + VARIANCE**0.5 * torch.randn(count, 3, generator=rng, dtype=torch.float64)
    return x_0, labels


def error(diffusion: Diffusion, student: NoisePredictor, grid: list[int], teacher_steps: int = 4) -> float:
    rng, (x_0, labels) = torch.Generator().manual_seed(1), images()
    return loss(
        diffusion,
        student,
        teacher_of(diffusion),
        x_0=x_0,
        labels=labels,
        no_label=NO_LABEL,
        rng=rng,
        grid=grid,
        teacher_steps=teacher_steps,
    ).item()


@pytest.mark.parametrize("diffusion", TARGETS, ids=lambda diffusion: diffusion.target)
@given(cut=st.integers(50, 900), steps=st.integers(1, 4), teacher_steps=st.integers(1, 6))
def test_the_student_that_jumps_as_its_teacher_walks_has_no_error_and_any_other_has(
    diffusion: Diffusion, cut: int, steps: int, teacher_steps: int
) -> None:
    grid = Distil(steps=steps).grid(cut)
    slopes = {s: slope(diffusion, timesteps(s, after, teacher_steps)) for s, after in pairwise(grid)}
    assert error(diffusion, student_of(diffusion, grid, slopes), grid, teacher_steps) < 1e-20
    for push in (-0.01, 0.01):
        assert error(diffusion, student_of(diffusion, grid, slopes, push), grid, teacher_steps) > 1e-6


@pytest.mark.parametrize("diffusion", TARGETS, ids=lambda diffusion: diffusion.target)
@pytest.mark.parametrize("cut", [100, 400, 800])
def test_an_error_weighs_as_much_as_its_snr_and_no_less_than_one(diffusion: Diffusion, cut: int) -> None:
    def off(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = diffusion.schedule.levels(t, x_t)
        x_0, _ = diffusion.estimates(teacher_of(diffusion)(x_t, t, labels), x_t, alpha, sigma)
        return output(diffusion, x_t, t, x_0 + 0.1)

    weight = max(diffusion.schedule.snr()[cut].item(), 1)
    assert error(diffusion, off, [cut, 0], 1) == pytest.approx(weight * 0.01)


@pytest.mark.parametrize("diffusion", TARGETS, ids=lambda diffusion: diffusion.target)
def test_a_teacher_of_many_steps_teaches_the_flow_itself(diffusion: Diffusion) -> None:
    """The exact flow of a normal distribution keeps every image at its number of deviations from the mean."""
    grid, alpha_bar = [700, 400, 0], diffusion.schedule.alpha_bar().tolist()
    deviation = {t: (alpha_bar[t] * VARIANCE + 1 - alpha_bar[t]) ** 0.5 for t in grid}
    flow = student_of(diffusion, grid, {s: deviation[after] / deviation[s] for s, after in pairwise(grid)})
    one, few, many = (error(diffusion, flow, grid, steps) for steps in (1, 10, 300))
    assert one > 20 * few > 400 * many


@pytest.mark.parametrize("diffusion", TARGETS, ids=lambda diffusion: diffusion.target)
def test_a_teacher_of_one_step_is_its_own_student(diffusion: Diffusion) -> None:
    assert error(diffusion, teacher_of(diffusion), [600, 300, 150, 0], 1) < 1e-20
    assert error(diffusion, teacher_of(diffusion), [600, 300, 150, 0], 2) > 1e-6


def test_a_student_ends_where_its_teacher_ends() -> None:
    diffusion, grid = TARGETS[1], Distil(steps=3).grid(600)
    slopes = {s: slope(diffusion, timesteps(s, after, 4)) for s, after in pairwise(grid)}
    networks = teacher_of(diffusion), student_of(diffusion, grid, slopes)
    fine = [600, *[t for s, after in pairwise(grid) for t in timesteps(s, after, 4)[1:]]]
    x, labels = images()
    ends = [
        denoise(guided(network, diffusion, labels, NO_LABEL, 1), x, diffusion.schedule, at, torch.Generator())
        for network, at in zip(networks, (fine, grid), strict=True)
    ]
    assert torch.allclose(*ends)


@given(s=st.integers(2, 1000), data=st.data())
def test_a_jump_is_undone_by_one_ddim_step_and_is_what_landed_at_the_end(s: int, data: st.DataObject) -> None:
    diffusion, after = Diffusion(), data.draw(st.integers(0, s - 1))
    x_s, landed = images(2)[0]
    x_0 = jump(diffusion, x_s, landed, s, after)
    (a, sigma), (b, sigma_after) = (diffusion.schedule.levels(torch.tensor([t]), x_s.unsqueeze(0)) for t in (s, after))
    assert torch.allclose(b * x_0 + sigma_after * (x_s - a * x_0) / sigma, landed.unsqueeze(0))
    assert torch.equal(jump(diffusion, x_s, landed, s, 0), landed)


@pytest.mark.parametrize("target", ["eps", "v"])
def test_a_linear_student_learns_it(target: str) -> None:
    diffusion, grid = Diffusion.model_validate({"target": target, "label_dropout": 0}), [500, 250, 0]
    weights = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)

    def student(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        w = weights[torch.tensor([grid.index(s) for s in t.tolist()])]
        return w[:, :1] * x_t + w[:, 1:]

    optimiser, rng = torch.optim.Adam([weights], 0.05), torch.Generator().manual_seed(0)
    x_0, errors = images()[0] * 0.5, []
    for _ in range(300):
        value = loss(
            diffusion,
            student,
            teacher_of(diffusion),
            x_0=x_0,
            labels=None,
            no_label=0,
            rng=rng,
            grid=grid,
            teacher_steps=4,
        )
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        errors.append(value.item())
    assert errors[-1] < 1e-4 * errors[0]


def test_a_unet_learns_from_another_and_the_other_stays_as_it_is() -> None:
    teacher, student = (TINY.build(seed).double() for seed in (0, 1))
    rng = torch.Generator().manual_seed(0)
    x_0, labels = torch.zeros(8, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1] * 4)
    value = loss(
        Diffusion(), student, teacher, x_0=x_0, labels=labels, no_label=2, rng=rng, grid=[200, 100, 0], teacher_steps=2
    )
    value.backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in student.parameters())


@pytest.mark.parametrize("grid", [[], [0], [500], [500, 250], [500, 500, 0], [0, 500, 0], [250, 500, 0]])
def test_what_does_not_fall_to_the_clean_image_is_no_grid(grid: list[int]) -> None:
    with pytest.raises(ValueError, match="expected steps that fall from the cut to 0"):
        error(Diffusion(), teacher_of(Diffusion()), grid)


@given(st.integers(1, 1000), st.integers(1, 4))
def test_a_grid_has_as_many_steps_as_were_told_if_the_cut_has(cut: int, steps: int) -> None:
    grid = Distil(steps=steps).grid(cut)
    assert len(grid) - 1 == min(cut, steps)
    assert (grid[0], grid[-1]) == (cut, 0)


@pytest.mark.parametrize("fields", [{"steps": 0}, {"steps": 5}, {"rounds": 0}, {"teacher_steps": 0}, {"step": 1}])
def test_what_cannot_be_told(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Distil.model_validate(fields)
