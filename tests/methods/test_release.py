"""What a silo gives away, and what the server takes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyhands import Images, Message, Schedule
from manyhands.data.images import as_floats
from manyhands.errors import Reason, Refused
from manyhands.methods.release import CHUNK, Noising, Store, chunk_of, chunks, clipped, fingerprint, normal, uniform
from tests.conftest import tiny_images

SCHEDULE = Schedule()


def many(count: int, size: int = 4) -> Images:
    return tiny_images(count, size=size)


def released(noising: Noising, images: Images) -> dict[str, torch.Tensor]:
    return noising.of(images, torch.arange(len(images)))


def test_an_image_is_noised_to_its_cut_as_the_chain_has_it() -> None:
    images = many(4000, size=8)
    x_0 = as_floats(images.pixels)
    x_cut = released(Noising(SCHEDULE, 400, "secret"), images)["images"]
    alpha_bar = float(SCHEDULE.alpha_bar()[400])
    eps = (x_cut - alpha_bar**0.5 * x_0) / (1 - alpha_bar) ** 0.5
    assert abs(eps.mean().item()) < 0.01
    assert eps.var().item() == pytest.approx(1, abs=0.01)
    assert abs((eps * x_0).mean().item()) < 0.01
    assert abs((eps.flatten(1)[:, :-1] * eps.flatten(1)[:, 1:]).mean().item()) < 0.01


def test_normal_numbers_are_normal_to_their_fourth_moment_and_their_tails() -> None:
    z = normal(b"key", 400_000)
    assert abs(z.mean()) < 0.01
    assert z.var() == pytest.approx(1, abs=0.01)
    assert (z**4).mean() == pytest.approx(3, abs=0.06)
    assert (abs(z) > 3).mean() == pytest.approx(0.0027, rel=0.1)
    assert len(normal(b"key", 7)) == 7
    u = uniform(b"key", 100_000)
    assert u.min() > 0
    assert u.max() < 1


@pytest.mark.parametrize("told", [{"secret": "other"}, {"cut": 401}, {"fresh": True}, {"norm": 3.0}])
def test_no_two_secrets_cuts_or_turns_share_noise(told: dict[str, object]) -> None:
    images, first = many(50), Noising(SCHEDULE, 400, "secret", norm=None)
    other = Noising(**{"schedule": SCHEDULE, "cut": 400, "secret": "secret", **told})  # type: ignore[arg-type]
    a, b = (torch.stack([noising._noise(image) for image in images.pixels]).flatten() for noising in (first, other))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 0.15


def test_the_same_image_is_released_the_same_wherever_it_stands_and_others_share_nothing() -> None:
    images, noising = many(6), Noising(SCHEDULE, 300, "secret")
    whole = released(noising, images)["images"]
    moved = released(noising, images.subset(np.array([4, 0])))["images"]
    assert torch.equal(moved, whole[[4, 0]])
    first, second = noising._noise(images.pixels[0]), noising._noise(images.pixels[1])
    assert not torch.allclose(first, second)


def test_at_cut_0_images_go_as_they_are() -> None:
    images = many(3)
    assert torch.equal(released(Noising(SCHEDULE, 0, "secret"), images)["images"], as_floats(images.pixels))


@given(st.floats(0.1, 20))
def test_clipping_scales_down_to_the_norm_and_never_up(norm: float) -> None:
    x = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    before, after = x.flatten(1).norm(dim=1), clipped(x, norm).flatten(1).norm(dim=1)
    assert torch.allclose(after, before.clamp(max=norm), rtol=1e-5)
    assert torch.equal(clipped(x, None), x)


def test_randomised_labels_are_true_with_the_odds_of_their_epsilon() -> None:
    images = tiny_images(4000, classes=5)
    assert images.labels is not None
    told = released(Noising(SCHEDULE, 500, "s", labels="randomised", label_epsilon=1.5), images)["labels"]
    odds = np.exp(1.5)
    assert (told == images.labels).float().mean().item() == pytest.approx(odds / (odds + 4), abs=0.025)
    wrong = (told - images.labels).remainder(5)[told != images.labels]
    assert torch.bincount(wrong, minlength=5)[1:].float().div(len(wrong)).sub(0.25).abs().max() < 0.05
    assert "labels" not in released(Noising(SCHEDULE, 500, "s"), images)
    shared = released(Noising(SCHEDULE, 500, "s", labels="share"), images)["labels"]
    assert torch.equal(shared, images.labels)


def test_a_release_in_parts_is_the_whole_one_and_goes_on_where_it_stood() -> None:
    images, noising = many(7), Noising(SCHEDULE, 200, "secret", labels="share")
    whole = list(chunks(noising, images, torch.arange(7)))
    assert len(whole) == 1
    later = list(chunks(noising, images, torch.arange(7), first=3))
    assert later[0].facts["first"] == 3
    assert torch.equal(later[0].tensors["images"], whole[0].tensors["images"][3:])
    assert chunk_of(784) * 784 * 4 <= CHUNK < (chunk_of(784) + 1) * 784 * 4
    fewer = images.subset(np.arange(1, 7))
    assert fingerprint(noising, images, torch.arange(7)) != fingerprint(noising, fewer, torch.arange(6))


def part(first: int, count: int, cut: int = 5, turn: int = 0, fill: float = 0.0) -> Message:
    facts = {"first": first, "cut": cut, "turn": turn}
    return Message(
        "release", {"images": torch.full((count, 1, 4, 4), fill), "labels": torch.zeros(count).long()}, facts
    )


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (part(0, 3), Reason.RELEASED),
        (part(2, 3), Reason.RELEASED),
        (part(4, 3), Reason.OUT_OF_SEQUENCE),
        (part(3, 8), Reason.OUT_OF_SEQUENCE),
        (part(3, 0), Reason.OUT_OF_SEQUENCE),
        (part(3, 3, cut=4), Reason.OTHER_CUT),
        (part(3, 3, turn=1), Reason.OUT_OF_SEQUENCE),
        (part(3, 3, fill=1e5), Reason.NOT_FINITE),
    ],
)
def test_what_is_not_the_next_part_is_refused_and_leaves_no_trace(message: Message, reason: Reason) -> None:
    store = Store(cut=5, enrolled=10)
    store.check(part(0, 3), 2)
    store.add(part(0, 3).tensors)
    with pytest.raises(Refused) as refused:
        store.check(message, 2)
    assert refused.value.reason is reason
    assert store.count == 3
    store.check(part(3, 7), 2)
    store.add(part(3, 7).tensors)
    assert store.whole


@pytest.mark.parametrize("labels", [torch.zeros(2).long(), torch.full((3,), 2), torch.full((3,), -1)])
def test_labels_that_no_image_can_have_are_refused(labels: torch.Tensor) -> None:
    bad = Message("release", {"images": torch.zeros(3, 1, 4, 4), "labels": labels}, part(0, 3).facts)
    with pytest.raises(Refused):
        Store(5, 10).check(bad, 2)
