"""Light noise is taken off, and from pure noise nobody does better than to guess the mean."""

from __future__ import annotations

import pytest
import torch

from manyhands.audit.attacks import reconstruction
from manyhands.audit.attacks.distance import explained, squared_error
from manyhands.audit.attacks.reconstruction import Attack
from manyhands.models.unet import UNet
from manyhands.silos.training import Training
from tests.audit.crowd import DIFFUSION, SCHEDULE, cloud, oracle, rng

PUBLIC, PRIVATE = cloud(2000, seed=1), cloud(400).clamp(-1, 1)
CUTS = (1, 100, 300, 500, 700, 900, 1000)


@pytest.fixture(scope="module")
def attacks() -> dict[str, Attack]:
    model = UNet(size=4, channels=1, classes=0, widths=(16,))
    training = Training(batch=64, steps=120, learning_rate=5e-3, learning_rate_end=0.05)
    denoiser = reconstruction.public_denoiser(PUBLIC, DIFFUSION, model, training, rng())
    return {
        "linear": reconstruction.linear(SCHEDULE),
        "wiener": reconstruction.wiener(SCHEDULE, PUBLIC),
        "regressor": reconstruction.regressor(PUBLIC, SCHEDULE, CUTS, model, training, rng()),
        "denoised": reconstruction.denoised(denoiser),
        "walked": reconstruction.sampled(denoiser, SCHEDULE),
        "oracle": reconstruction.denoised(oracle),
    }


def gain(attack: Attack, t: int, copies: int = 1) -> float:
    """The share of the mean's squared error that an attack takes away."""
    x_t = [reconstruction.release(SCHEDULE, PRIVATE, t, rng(seed)) for seed in range(copies)]
    together, level = reconstruction.averaged(SCHEDULE, x_t, t)
    guess = reconstruction.mean_of(PUBLIC)(together, level)
    errors = [squared_error(estimate, PRIVATE) for estimate in (attack(together, level), guess)]
    return explained(torch.stack(errors, 1))


NAMES = ["linear", "wiener", "regressor", "denoised", "walked", "oracle"]


@pytest.mark.parametrize("name", NAMES)
def test_at_the_first_step_the_image_comes_back(attacks: dict[str, Attack], name: str) -> None:
    assert gain(attacks[name], 1) > 0.98


@pytest.mark.parametrize("name", NAMES)
def test_from_pure_noise_none_does_better_than_the_mean(attacks: dict[str, Attack], name: str) -> None:
    assert gain(attacks[name], SCHEDULE.steps) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_more_noise_leaves_less(attacks: dict[str, Attack], name: str) -> None:
    gains = [gain(attacks[name], t) for t in (1, 200, 500, 800)]
    assert gains == sorted(gains, reverse=True)


@pytest.mark.parametrize("t", [100, 300, 500, 700])
def test_none_beats_the_posterior_mean_of_gaussian_images_and_wiener_reaches_it(
    attacks: dict[str, Attack], t: int
) -> None:
    best = gain(attacks["oracle"], t)
    assert all(gain(attack, t) < best + 0.01 for attack in attacks.values())
    assert gain(attacks["wiener"], t) == pytest.approx(best, abs=0.01)
    assert gain(attacks["denoised"], t) > best - 0.1
    assert gain(attacks["regressor"], t) > best - 0.1


def test_copies_with_fresh_noise_are_one_at_so_many_times_the_snr() -> None:
    x_t = torch.stack([reconstruction.release(SCHEDULE, torch.ones(9000, 1, 1, 1), 600, rng(i)) for i in range(20)])
    together, level = reconstruction.averaged(SCHEDULE, x_t, 600)
    a = float(SCHEDULE.alpha_bar()[level])
    assert float(SCHEDULE.snr()[level]) == pytest.approx(20 * float(SCHEDULE.snr()[600]), rel=0.02)
    assert together.mean().item() == pytest.approx(a**0.5, abs=0.01)
    assert together.var().item() == pytest.approx(1 - a, rel=0.05)
    assert gain(reconstruction.linear(SCHEDULE), 600, copies=20) > gain(reconstruction.linear(SCHEDULE), 600)


def test_the_mean_of_one_release_sent_often_is_that_release() -> None:
    once = reconstruction.release(SCHEDULE, PRIVATE, 600, rng())
    mean, level = reconstruction.averaged(SCHEDULE, [once], 600)
    assert level == 600
    assert torch.equal(mean, once)
    alpha = float(SCHEDULE.alpha_bar()[600].sqrt())
    often, lighter = reconstruction.averaged(SCHEDULE, [once] * 8, 600)
    of_often = often / float(SCHEDULE.alpha_bar()[lighter].sqrt())
    assert torch.allclose(of_often, once / alpha, rtol=1e-5)  # the same image, just as noisy


def test_the_network_in_parts_says_the_same() -> None:
    network = UNet(size=4, channels=1, classes=2, widths=(8,)).build(0).eval()
    x, t, labels = cloud(7), torch.arange(1, 8), torch.arange(7) % 3
    whole = network(x, t, labels).detach()
    assert torch.allclose(reconstruction.in_parts(network, 3)(x, t, labels), whole, atol=1e-6)
