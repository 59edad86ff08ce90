from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from manyhands.diffusion.objective import Diffusion, eps_of_v, noised, v_of, x_0_of_eps, x_0_of_v
from manyhands.diffusion.schedule import Schedule

schedules = st.builds(Schedule, kind=st.sampled_from(["cosine", "linear", "scaled-linear"]), steps=st.integers(2, 1500))


@given(schedules)
def test_the_chain_starts_clean_and_snr_falls(schedule: Schedule) -> None:
    alpha_bar = schedule.alpha_bar()
    assert len(alpha_bar) == schedule.steps + 1
    assert alpha_bar[0] == 1
    assert (alpha_bar.diff() < 0).all()
    assert (schedule.snr()[1:].diff() < 0).all()


@pytest.mark.parametrize(
    ("kind", "theirs"), [("cosine", "squaredcos_cap_v2"), ("linear", "linear"), ("scaled-linear", "scaled_linear")]
)
def test_the_levels_are_those_of_diffusers_counted_from_one(kind: str, theirs: str) -> None:
    ours = Schedule.model_validate({"kind": kind}).alpha_bar()
    assert torch.allclose(
        ours[1:].float(), DDIMScheduler(1000, beta_schedule=theirs).alphas_cumprod, rtol=1e-3, atol=1e-7
    )


@given(schedules, st.data())
def test_eps_x0_and_v_say_the_same(schedule: Schedule, data: st.DataObject) -> None:
    t = torch.tensor([data.draw(st.integers(1, schedule.steps - 1))])
    x_0, eps = torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).chunk(2)
    alpha, sigma = schedule.levels(t, x_0)
    x_t, v = noised(x_0, eps, alpha, sigma), v_of(x_0, eps, alpha, sigma)
    assert torch.allclose(x_0_of_v(x_t, v, alpha, sigma), x_0)
    assert torch.allclose(eps_of_v(x_t, v, alpha, sigma), eps)
    if alpha.item() > 1e-3:
        assert torch.allclose(x_0_of_eps(x_t, eps, alpha, sigma), x_0, atol=1e-6)


def test_min_snr_weights_are_of_the_clean_image_and_never_above_gamma() -> None:
    t = torch.arange(1, 1001)
    snr = Schedule().snr()[t].float()
    eps, v = (Diffusion(target=kind, min_snr=5).weights(t, torch.device("cpu")) for kind in ("eps", "v"))
    clipped = snr.clamp(max=5)
    assert torch.allclose(eps * snr, clipped, rtol=1e-4)  # an eps error weighs SNR in terms of x_0
    assert torch.allclose(v * (snr + 1), clipped, rtol=1e-4)
    assert torch.equal(Diffusion().weights(t, torch.device("cpu")), torch.ones(1000))


def test_the_loss_of_the_right_answer_is_zero_and_hidden_labels_are_the_declared_share() -> None:
    x_0, labels, seen = torch.zeros(4000, 1, 1, 1), torch.ones(4000, dtype=torch.long), []
    diffusion = Diffusion(target="eps", label_dropout=0.25)

    def right(x_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        assert y is not None
        seen.append((y == 7).float().mean().item())
        return x_t / diffusion.schedule.levels(t, x_t)[1]  # x_0 is 0, so all is noise

    assert diffusion.loss(right, x_0, labels, 7, torch.Generator().manual_seed(0)).item() < 1e-10
    assert abs(seen[0] - 0.25) < 0.03
