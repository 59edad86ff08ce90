"""Picking the true image among candidates is as easy as theory has it, and pure chance in pure noise."""

from __future__ import annotations

import math

import pytest
import torch

from manyhands.audit.attacks.identity import equidistant, limit, linkability, recognised
from manyhands.audit.attacks.reconstruction import averaged, release
from manyhands.audit.expected_identification import DOUBT, SELDOM, clouds_of, expected_identification, first_hidden_step
from tests.audit.crowd import SCHEDULE, cloud, rng

COUNT = 200


def level(t: int) -> tuple[float, float]:
    a = float(SCHEDULE.alpha_bar()[t])
    return a**0.5, math.sqrt((1 - a) / a)


def rate(images: torch.Tensor, t: int, draws: int = 25) -> float:
    hits = [recognised(release(SCHEDULE, images, t, rng(seed)), images, level(t)[0]) for seed in range(draws)]
    return torch.stack(hits).double().mean().item()


@pytest.mark.parametrize("t", [100, 500, 700, 850, 950, 1000])
def test_of_candidates_that_are_as_far_from_each_other_theory_and_attack_agree(t: int) -> None:
    images = torch.eye(COUNT).reshape(COUNT, 1, 10, 20)
    deviation = 0.5 / math.sqrt(25 * COUNT)
    assert rate(images, t) == pytest.approx(equidistant(images, level(t)[1]), abs=4 * deviation)


@pytest.mark.parametrize("t", [100, 300, 500, 700, 900, 1000])
def test_of_gaussian_images_theory_and_attack_agree(t: int) -> None:
    images, sigma = cloud(COUNT, size=16), level(t)[1]
    share, deviation = rate(images, t), 0.5 / math.sqrt(25 * COUNT)
    assert share == pytest.approx(equidistant(images, sigma), abs=4 * deviation)
    predicted = expected_identification(clouds_of(cloud(3000, seed=1, size=16), None), sigma, COUNT, rng())
    assert share == pytest.approx(predicted, abs=0.05)
    assert share <= limit(images, sigma) + 4 * deviation


def test_at_the_noisiest_step_it_is_chance_and_at_the_first_it_is_sure() -> None:
    images, sigma = cloud(COUNT), level(SCHEDULE.steps)[1]
    share = expected_identification(clouds_of(images, None), sigma, COUNT, rng())
    for said in (equidistant(images, sigma), limit(images, sigma), rate(images, SCHEDULE.steps), share):
        assert said == pytest.approx(1 / COUNT, abs=2e-3)
    images, sigma = cloud(COUNT, size=8), level(5)[1]
    assert rate(images, 5, 1) == 1
    assert equidistant(images, sigma) == pytest.approx(1)
    assert expected_identification(clouds_of(images, None), sigma, COUNT, rng()) == pytest.approx(1, abs=1e-3)


def test_more_noise_identifies_less_and_more_copies_more() -> None:
    images = cloud(COUNT)
    rates = [rate(images, t, 5) for t in (50, 300, 500, 700, 900)]
    assert rates == sorted(rates, reverse=True)
    for said in (equidistant, limit):
        values = [said(images, level(t)[1]) for t in (50, 300, 500, 700, 900)]
        assert values == sorted(values, reverse=True)
    together, at = averaged(SCHEDULE, [release(SCHEDULE, images, 700, rng(i)) for i in range(30)], 700)
    assert recognised(together, images, level(at)[0]).double().mean() > 4 * rates[3]


def test_the_step_that_hides_is_the_first_which_does_and_more_copies_need_a_later_one() -> None:
    crowd = clouds_of(cloud(500, size=8), None)
    first, later = (first_hidden_step(crowd, SCHEDULE, 1000, seed=0, releases=n) for n in (1, 20))
    assert first is not None
    assert later is not None
    assert later > first + 20
    before, at = (expected_identification(crowd, level(t)[1], 1000, rng(0)) * DOUBT for t in (first - 1, first))
    assert at <= SELDOM < before
    assert first_hidden_step(crowd, SCHEDULE, 50, seed=0) is None


def test_no_rule_beats_the_limit_which_two_candidates_reach() -> None:
    images = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)
    for sigma in (0.5, 1.0, 3.0):
        assert limit(images, sigma) == pytest.approx(float(torch.special.ndtr(torch.tensor(1 / sigma))), abs=1e-6)


def test_clouds_are_one_for_each_class() -> None:
    images, labels = torch.cat([cloud(60), cloud(40, seed=1) + 0.5]), torch.tensor([0] * 60 + [1] * 40)
    assert [round(part.share, 3) for part in clouds_of(images, labels)] == [0.6, 0.4]
    far = expected_identification(clouds_of(images, labels), 0.3, 100, rng())
    assert far == pytest.approx(
        sum(
            (torch.cdist((images + 0.3 * torch.randn(images.shape, generator=rng(i))).flatten(1), images.flatten(1)))
            .argmin(1).eq(torch.arange(100)).double().mean().item()
            for i in range(20)
        ) / 20,
        abs=0.05,
    )  # fmt: skip


def test_two_releases_of_one_image_are_linked_unless_they_are_pure_noise() -> None:
    images = cloud(300, size=8)
    aucs = [
        linkability(release(SCHEDULE, images, t, rng(1)), release(SCHEDULE, images, t, rng(2)), rng())
        for t in (10, 400, 600, 1000)
    ]
    values = [auc["value"] for auc in aucs]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.999
    assert aucs[-1]["low"] < 0.5 < aucs[-1]["high"]


def test_the_same_release_sent_twice_is_linked_at_any_level() -> None:
    once = release(SCHEDULE, cloud(100), 1000, rng())
    assert linkability(once, once, rng())["value"] == 1
