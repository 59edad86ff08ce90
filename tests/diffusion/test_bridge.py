"""What is learnt from images that were noised up to a cut is the chain itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyhands.diffusion.bridge import bridge, bridge_loss
from manyhands.diffusion.objective import Diffusion
from manyhands.diffusion.schedule import Schedule


@given(st.integers(1, 998), st.data(), st.sampled_from(["cosine", "linear"]))
def test_noising_twice_over_the_bridge_is_noising_once(cut: int, data: st.DataObject, kind: str) -> None:
    schedule = Schedule.model_validate({"kind": kind})
    t = data.draw(st.integers(cut + 1, 999))
    like = torch.zeros(1, 1, dtype=torch.float64)
    alpha_r, sigma_r = (float(x) for x in bridge(schedule, torch.tensor([t]), torch.tensor([cut]), like))
    alpha_bar = schedule.alpha_bar().tolist()
    assert alpha_r**2 * alpha_bar[cut] == pytest.approx(alpha_bar[t])
    assert alpha_r**2 * (1 - alpha_bar[cut]) + sigma_r**2 == pytest.approx(1 - alpha_bar[t])


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("target", ["eps", "v", "flow"])
def test_no_network_does_better_than_the_ordinary_denoiser_at_any_cut(target: str, pairs: bool) -> None:
    diffusion, mean, variance = Diffusion.model_validate({"target": target}), 0.5, 0.3
    schedule, rng = diffusion.schedule, torch.Generator().manual_seed(0)
    x_0 = mean + variance**0.5 * torch.randn(200_000, 1, generator=rng, dtype=torch.float64)
    cut = torch.randint(100, 700, (len(x_0),), generator=rng)
    alpha, sigma = schedule.levels(cut, x_0)
    x_cut = alpha * x_0 + sigma * torch.randn(x_0.shape, generator=rng, dtype=torch.float64)

    def loss(push: float) -> float:
        def network(x: torch.Tensor, t: torch.Tensor, _: object) -> torch.Tensor:
            alpha, sigma = schedule.levels(t, x)
            eps = sigma * (x - alpha * mean) / (alpha**2 * variance + sigma**2)
            right = {"eps": eps, "v": (eps - sigma * x) / alpha, "flow": (eps - x) / alpha.clamp(min=1e-9)}[target]
            if target == "flow":
                right = torch.where(alpha > 0, right, x - mean)
            return right + push * x

        rng = torch.Generator().manual_seed(1)
        return bridge_loss(diffusion, network, x_cut, cut, None, 0, rng, pairs=pairs).item()

    best = loss(0.0)
    assert loss(0.02) > best < loss(-0.02)


def test_near_the_cut_a_noise_and_its_opposite_vary_far_less_than_two_noises() -> None:
    diffusion, x_cut = Diffusion(max_timestep=410), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def slope(seed: int, *, pairs: bool) -> float:
        push = torch.zeros((), requires_grad=True)
        x = x_cut[:1] if pairs else x_cut
        rng, cut = torch.Generator().manual_seed(seed), torch.full((len(x),), 400)
        bridge_loss(diffusion, lambda x, *_: push * x, x, cut, None, 0, rng, pairs=pairs).backward()
        assert push.grad is not None
        return float(push.grad)

    alone, paired = ([slope(seed, pairs=pairs) for seed in range(100)] for pairs in (False, True))
    assert torch.tensor(paired).var() < 0.2 * torch.tensor(alone).var()
