"""What can be computed exactly is found where it is there, and only there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.audit.attacks.algebra import recovered, unsafe_release
from manyhands.audit.attacks.reconstruction import release
from manyhands.diffusion.objective import noised, v_of
from manyhands.messages.message import Message, decode, encode
from tests.audit.crowd import SCHEDULE, cloud, rng

TRUTH = cloud(60, size=8)
EPS = torch.randn(TRUTH.shape, generator=rng(7_000_001))


def at(t: int, eps: torch.Tensor = EPS) -> torch.Tensor:
    return noised(TRUTH, eps, *SCHEDULE.levels(torch.tensor([t]), TRUTH))


def recovered_count(*messages: Message, seeds: range = range(20)) -> int:
    return recovered([decode(encode(message)) for message in messages], TRUTH, seeds)["recovered"]


def test_the_unsafe_release_gives_all_images_away() -> None:
    t = torch.randint(1, 900, (60,), generator=rng())
    assert recovered([unsafe_release(SCHEDULE, TRUTH, t, rng(9))], TRUTH, []) == {
        "alone": 0, "in_pairs": 60, "with_noise_from_seeds": 0, "recovered": 60, "of": 60,
    }  # fmt: skip


@settings(max_examples=15)
@given(st.integers(100, 1000), st.integers(0, 2**32))
def test_a_proper_release_gives_none_away(t: int, seed: int) -> None:
    once = release(SCHEDULE, TRUTH, t, rng(seed + 2**20))
    again = release(SCHEDULE, TRUTH, t, rng(seed + 2**20 + 1))
    messages = [
        Message("release", {"x": once, "labels": torch.arange(60) % 10}, {"cut": t}),
        Message("release", {"x": again}, {"cut": t}),
    ]
    assert recovered_count(*messages, seeds=range(10)) == 0


def test_the_image_in_the_clear_or_lightly_noised_is_found() -> None:
    assert recovered_count(Message("release", {"x": TRUTH[20:].clone()})) == 40
    assert recovered_count(Message("release", {"x": TRUTH.half()})) == 60


@pytest.mark.parametrize("t", [50, 500, 900])
def test_each_way_to_the_image_is_found(t: int) -> None:
    v = v_of(TRUTH, EPS, *SCHEDULE.levels(torch.tensor([t]), TRUTH))
    assert recovered_count(Message("release", {"x": at(t), "target": v})) == 60
    assert recovered_count(Message("release", {"x": at(t)}), Message("target", {"eps": EPS})) == 60
    assert recovered_count(Message("release", {"x": at(t), "y": at(t + 50)})) == 60


def test_two_rounds_that_share_their_noise_are_found_in_any_order() -> None:
    order = torch.randperm(60, generator=rng())
    rounds = [Message("release", {"x": at(300)}), Message("release", {"x": at(350)[order]})]
    assert recovered_count(*rounds) == 60


def test_noise_from_a_seed_that_can_be_guessed_or_read_is_drawn_again() -> None:
    small, sent = (torch.randn(TRUTH.shape, generator=rng(seed)) for seed in (13, 987_654_321))
    assert recovered_count(Message("release", {"x": at(500, small)})) == 60
    assert recovered_count(Message("release", {"x": at(500, sent)})) == 0
    assert recovered_count(Message("release", {"x": at(500, sent)}, {"run": {"seed": [987_654_321]}})) == 60


def test_a_seed_for_each_row_is_found() -> None:
    seeds = torch.arange(60) * 7 + 10_000
    noise = torch.stack([torch.randn(TRUTH.shape[1:], generator=rng(int(seed))) for seed in seeds])
    assert recovered_count(Message("release", {"x": at(300, noise), "rows": seeds})) == 60
    assert recovered_count(Message("release", {"x": at(300, noise)})) == 0


def test_nothing_said_is_nothing_found() -> None:
    assert recovered([], TRUTH) == {"alone": 0, "in_pairs": 0, "with_noise_from_seeds": 0, "recovered": 0, "of": 60}
    assert (
        recovered_count(Message("update", {"weights": torch.randn(8, 8, generator=rng())}, {"loss": 0.5, "done": True}))
        == 0
    )
