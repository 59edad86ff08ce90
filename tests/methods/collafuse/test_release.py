"""What a silo gives away, and what the server takes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyhands import Images, Message, Schedule
from manyhands.data.images import as_floats
from manyhands.diffusion.norm_bound import squeezed
from manyhands.errors import Reason, Refused
from manyhands.methods.collafuse.release import (
    MESSAGE_BYTES,
    Noising,
    Store,
    images_per_message,
    release_hash,
    release_messages,
    shrinking,
)
from tests.conftest import tiny_images

SCHEDULE = Schedule()


def many(count: int, size: int = 4) -> Images:
    return tiny_images(count, size=size)


def released(noising: Noising, images: Images) -> dict[str, torch.Tensor]:
    return noising.release(images, torch.arange(len(images)))


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


def noise_of(released: torch.Tensor, x_0: torch.Tensor, cut: int) -> torch.Tensor:
    alpha_bar = float(SCHEDULE.alpha_bar()[cut])
    return ((released - alpha_bar**0.5 * x_0) / (1 - alpha_bar) ** 0.5).flatten(1)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def test_another_secret_or_turn_is_other_noise() -> None:
    images = many(50)
    first = released(Noising(SCHEDULE, 600, "secret"), images)["images"]
    for options in ({"secret": "other"}, {"fresh": True}, {"fresh": True, "turn": 1}):
        other = released(Noising(**{"schedule": SCHEDULE, "cut": 600, "secret": "secret", **options}), images)["images"]  # type: ignore[arg-type]
        x_0 = as_floats(images.pixels)
        assert abs(correlation(noise_of(first, x_0, 600), noise_of(other, x_0, 600))) < 0.15


def test_equal_images_of_a_silo_share_no_noise() -> None:
    images = many(1, size=16).subset(np.zeros(40, int))
    eps = noise_of(released(Noising(SCHEDULE, 400, "secret"), images)["images"], as_floats(images.pixels), 400)
    between = torch.corrcoef(eps) - torch.eye(40)
    assert between.abs().max() < 0.35  # of 256 numbers: 5.6 deviations
    assert abs(between.sum().item()) / (40 * 39) < 0.005
    labels = released(Noising(SCHEDULE, 400, "s", labels="randomised", label_epsilon=0.1), many_labelled(images))
    assert len(labels["labels"].unique()) > 1


def many_labelled(images: Images) -> Images:
    return Images(images.pixels, torch.zeros(len(images), dtype=torch.long), ("a", "b"))


def test_a_record_is_released_the_same_whatever_else_there_is_and_whoever_is_held_out() -> None:
    images, noising = Images(many(6).pixels[[0, 1, 2, 1, 3, 1]]), Noising(SCHEDULE, 300, "secret")
    whole = released(noising, images)["images"]
    for first in (0, 1, 3):  # one of the three equal ones among those that go and those that stay
        gone = images.subset(np.array([first]))
        left = np.array([number for number in range(6) if number != first])
        again = released(replace(noising, held_out=gone), images.subset(left))["images"]
        assert torch.equal(again, whole[left])
    moved = images.subset(np.array([4, 5, 0, 3, 1]))  # row 2 is gone, the others stand elsewhere
    assert torch.equal(released(noising, moved)["images"], whole[[4, 5, 0, 3, 1]])
    assert not torch.equal(whole[1], whole[3])


def test_what_is_the_same_in_effect_is_released_the_same_however_a_recipe_puts_it() -> None:
    images = Images(many(20).pixels // 4 + 96)  # near grey, far from the corners of the box of pixels
    plain, chain = Noising(SCHEDULE, 400, "secret"), Schedule(kind="cosine", beta_start=0.002)
    most = as_floats(images.pixels).flatten(1).norm(dim=1).max().item()
    for same in (replace(plain, schedule=chain), replace(plain, norm=most * 2.001), replace(plain, norm=1e9)):
        assert release_hash(plain, images, torch.arange(20)) == release_hash(same, images, torch.arange(20))
    assert most * 2.001 < 4
    assert bool((shrinking(images.pixels, most * 2.001) == 1).all())


@pytest.mark.parametrize("what", ["norms", "cuts", "chains"])
def test_fifty_recipes_that_hardly_differ_tell_no_more_than_one(what: str) -> None:
    """Averaged, they took a release from 2.6 dB to 19.5."""
    images = many(60, size=8)
    x_0 = as_floats(images.pixels)
    least = x_0.flatten(1).norm(dim=1).min().item()
    noisings = {
        "norms": [Noising(SCHEDULE, 400, "secret", norm=least * (1 - k * 1e-4)) for k in range(50)],
        "cuts": [Noising(Schedule(steps=100_000), 40_000 + k, "secret") for k in range(50)],
        "chains": [Noising(Schedule(kind="linear", beta_end=0.02 + k * 1e-6), 400, "secret") for k in range(50)],
    }[what]
    releases = torch.stack([released(noising, images)["images"] for noising in noisings])
    assert len({release_hash(noising, images, torch.arange(60)) for noising in noisings[:3]}) == 3

    def decibel(release: torch.Tensor) -> float:
        along = (release * x_0).sum() / x_0.square().sum()
        return 10 * np.log10(float(along.square() * x_0.square().sum() / (release - along * x_0).square().sum()))

    assert decibel(releases.mean(0)) < decibel(releases[0]) + 0.5
    apart = (releases[1:] - releases[:-1]).flatten(1)  # and neither does a difference show the image
    assert max(abs(correlation(one, x_0)) for one in apart) < 0.08


def test_at_cut_0_images_go_as_they_are() -> None:
    images = many(3)
    assert torch.equal(released(Noising(SCHEDULE, 0, "secret"), images)["images"], as_floats(images.pixels))


@given(st.floats(0.1, 20))
def test_what_is_released_is_squeezed_as_the_networks_of_silos_see_it(norm: float) -> None:
    images = many(20)
    x = as_floats(images.pixels)
    assert torch.allclose(x * shrinking(images.pixels, norm), squeezed(x, norm).double(), atol=1e-6)
    one = shrinking(images.pixels[3:4], norm)  # whichever others are with it
    assert torch.equal(one, shrinking(images.pixels, norm)[3:4])
    mean = released(Noising(SCHEDULE, 0, "s", norm=norm), images)["images"]
    assert torch.allclose(mean, squeezed(x, norm), atol=1e-6)


def test_randomised_labels_are_true_with_the_odds_of_their_epsilon() -> None:
    images = tiny_images(4000, classes=5)
    assert images.labels is not None
    labels = released(Noising(SCHEDULE, 500, "s", labels="randomised", label_epsilon=1.5), images)["labels"]
    odds = np.exp(1.5)
    assert (labels == images.labels).float().mean().item() == pytest.approx(odds / (odds + 4), abs=0.025)
    wrong = (labels - images.labels).remainder(5)[labels != images.labels]
    assert torch.bincount(wrong, minlength=5)[1:].float().div(len(wrong)).sub(0.25).abs().max() < 0.05
    assert "labels" not in released(Noising(SCHEDULE, 500, "s"), images)
    shared = released(Noising(SCHEDULE, 500, "s", labels="share"), images)["labels"]
    assert torch.equal(shared, images.labels)


def test_a_release_in_parts_is_the_whole_one_and_goes_on_where_it_stood() -> None:
    images, noising = many(7), Noising(SCHEDULE, 200, "secret", labels="share")
    whole = list(release_messages(noising, images, torch.arange(7)))
    assert len(whole) == 1
    later = list(release_messages(noising, images, torch.arange(7), first=3))
    assert later[0].facts["first"] == 3
    assert torch.equal(later[0].tensors["images"], whole[0].tensors["images"][3:])
    assert images_per_message(784) * 784 * 4 <= MESSAGE_BYTES < (images_per_message(784) + 1) * 784 * 4
    fewer = images.subset(np.arange(1, 7))
    assert release_hash(noising, images, torch.arange(7)) != release_hash(noising, fewer, torch.arange(6))


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
