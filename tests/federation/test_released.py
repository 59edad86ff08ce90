"""What a site releases is counted for each of its images, over all recipes, before it is sent."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from manyhands import CollaFuse
from manyhands.data.formats.place import Place
from manyhands.diffusion.release_privacy import box_norm
from manyhands.errors import BudgetError
from manyhands.federation.conversation import converse
from manyhands.federation.policy import Policy
from manyhands.federation.released import Released
from manyhands.federation.secret import site_secret
from manyhands.messages.message import Message
from manyhands.messages.operation import Operation
from manyhands.messages.plan import Plan
from manyhands.methods.base import Conversation
from manyhands.methods.collafuse.release import release_messages
from manyhands.methods.collafuse.silo import noising_of, order_of
from manyhands.privacy.accountant import epsilon, mu_of
from manyhands.privacy.budget import RELEASES_FILE, Budget, Cost, Limits
from manyhands.silos.silo import Silo
from tests.conftest import tiny_images

SIZE, COUNT = 4, 6
UNLIMITED = Limits()


def collafuse(**fields: object) -> CollaFuse:
    size = fields.pop("size", SIZE)
    model = {"size": size, "channels": 1, "classes": 2, "widths": [8]}
    training = {"batch": 4, "steps": 1}
    return CollaFuse.model_validate({"model": model, "training": training, "rounds": 3, "cut": 0.9, **fields})


class Here:
    """A site's folder, images and secret."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder / "site", [folder / f"{number}.png" for number in range(COUNT)]
        for number, file in enumerate(self.files):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(file)

    def released(
        self, method: CollaFuse, limits: Limits = UNLIMITED, turn: int = 0, classes: tuple[str, ...] = ("0", "1")
    ) -> list[Message]:
        """What a run that has just begun sends of it, as far as it may."""
        secret = site_secret(self.folder)
        images = replace(tiny_images(COUNT, seed=1, size=method.model.size), classes=classes)
        silo = Silo("a", images, secret=secret)
        places = [(Place(str(file)), 0) for file in self.files]
        charged = Released(Budget(self.folder, secret), limits, silo, method, places)
        sent = []
        for message in release_messages(noising_of(method, silo, turn), images, order_of(method, silo, turn)):
            charged.charge(message, "run")
            sent.append(message)
        return sent

    @property
    def spent(self) -> Cost:
        return Budget(self.folder, site_secret(self.folder)).worst()


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


def test_a_release_costs_what_its_cut_says(here: Here) -> None:
    method = collafuse()
    here.released(method)
    snr = float(method.diffusion.schedule.snr()[method.step_of("a")])
    assert here.spent.epsilon(1e-5) == pytest.approx(epsilon(mu_of(snr, box_norm(SIZE**2)), 1e-5))


@pytest.mark.parametrize("change", [{}, {"rounds": 2}, {"norm": 1000.0}, {"training": {"batch": 2, "steps": 2}}])
def test_a_recipe_that_releases_the_same_costs_nothing(here: Here, change: dict[str, object]) -> None:
    here.released(collafuse())
    before = (here.folder / RELEASES_FILE).read_bytes()
    here.released(collafuse(**change))
    assert (here.folder / RELEASES_FILE).read_bytes() == before


def test_fifty_recipes_are_never_more_than_the_ledger_says(here: Here) -> None:
    """However recipes differ, what can be computed by averaging all of them is below what was counted."""
    base = collafuse()
    sent = [here.released(collafuse(norm=8 + number / 10))[0].tensors["images"] for number in range(50)]
    alpha, _ = base.diffusion.schedule.levels(torch.tensor([base.step_of("a")]), sent[0])
    images = tiny_images(COUNT, seed=1, size=SIZE).pixels.float() / 127.5 - 1
    noise = torch.stack([images_sent / alpha - images for images_sent in sent]).mean(0)
    averaged = 1 / float(noise.square().mean())
    assert here.spent.snr > averaged / 1.5  # of a few hundred numbers
    assert here.spent.releases == 1  # no norm clips anything here: all are one release


def test_another_cut_size_or_turn_is_another_release_of_the_same_images(here: Here) -> None:
    here.released(collafuse())
    once = here.spent
    here.released(collafuse(cut=0.95))
    assert here.spent.snr == pytest.approx(
        once.snr * 10 ** (3 / 8 / 10), rel=1e-3
    )  # the noisier one tells next to nothing
    here.released(collafuse(size=8))
    assert here.spent.releases == 2
    for turn in range(3):
        here.released(collafuse(release="fresh"), turn=turn)
    assert here.spent.releases > 2


def test_past_its_budget_nothing_is_released(here: Here) -> None:
    limits = Limits(epsilon=1.01 * _epsilon(collafuse()))
    here.released(collafuse(), limits)
    before = (here.folder / RELEASES_FILE).read_bytes()
    with pytest.raises(BudgetError, match=f"{COUNT} of its images would be released at epsilon .*spent: 1 releases"):
        here.released(collafuse(size=8), limits)
    assert (here.folder / RELEASES_FILE).read_bytes() == before
    assert here.released(collafuse(), limits)  # which the server has already


def test_an_image_is_known_by_its_file_whatever_it_is_called(here: Here) -> None:
    here.released(collafuse())
    here.files = [file.rename(file.with_name(f"other-{file.name}")) for file in here.files]
    here.released(collafuse(size=8))
    assert here.spent.releases == 2


def test_labels_that_are_told_at_random_are_counted_and_others_are_not(here: Here) -> None:
    here.released(collafuse(labels="share"))
    assert here.spent.labels == 0
    here.released(collafuse(labels="randomised", label_epsilon=2.0))
    assert here.spent.labels == 2


def test_labels_that_are_drawn_anew_among_other_classes_are_counted_anew(here: Here) -> None:
    """Whoever writes recipes may name classes that nobody has: each number of them would be another draw of a label."""
    method, limits = collafuse(labels="randomised", label_epsilon=1.0), Limits(epsilon=1e3)
    messages = [here.released(method, limits, classes=tuple(map(str, range(count)))) for count in range(2, 7)]
    assert len({tuple(message[0].tensors["labels"].tolist()) for message in messages}) > 1
    assert here.spent.labels == pytest.approx(5)
    assert here.spent.releases == 1
    here.released(collafuse(labels="randomised", label_epsilon=0.5), limits)  # makes nothing new known
    assert here.spent.labels == pytest.approx(5)
    before = (here.folder / RELEASES_FILE).read_bytes()
    with pytest.raises(BudgetError, match="epsilon"):
        here.released(method, Limits(epsilon=here.spent.epsilon(1e-5) + 0.5), classes=tuple(map(str, range(9))))
    assert (here.folder / RELEASES_FILE).read_bytes() == before


def test_an_image_that_leaves_as_it_is_is_beyond_every_epsilon(here: Here) -> None:
    with pytest.raises(BudgetError, match="epsilon inf"):
        here.released(collafuse(cut=0.0), Limits(epsilon=1e9))
    here.released(collafuse(cut=0.0))
    assert math.isinf(here.spent.epsilon(1e-5))


def test_a_policy_s_limits_are_those_of_the_ledger() -> None:
    policy = Policy(max_epsilon=3.0, max_snr_db=-10.0, max_releases=2, delta=1e-6)
    assert policy.limits == Limits(3.0, -10.0, 2, 1e-6)


def test_by_default_all_releases_of_an_image_have_no_more_signal_than_noise(here: Here) -> None:
    """As a policy says of one run, over all of them: each size is a release of its own, of an SNR of -2 dB."""
    fields = {"cut": {"snr_db": -2}}
    here.released(collafuse(**fields), Policy().limits)
    with pytest.raises(BudgetError, match="snr_db 0.9"):
        here.released(collafuse(size=8, **fields), Policy(approve="limits", max_releases=9).limits)
    for opened in ({"computable": True}, {"images": True}, {"max_epsilon": 1e3}, {"max_snr_db": 2}):
        here.released(collafuse(size=8, **fields), Policy.model_validate(opened).limits)


def test_every_message_is_charged_before_it_is_sent_and_not_sent_where_that_is_refused() -> None:
    done = list[str]()

    def conversation() -> Conversation:
        yield Message("a")
        yield Message("b")

    def charge(message: Message, closes_round: bool) -> None:
        done.append(f"charged {message.op}")
        if message.op == "b":
            raise BudgetError("spent")

    def call(message: Message) -> Message:
        done.append(f"sent {message.op}")
        return message

    plan = Plan({"a": Operation("a", "once"), "b": Operation("b", "once")})
    with pytest.raises(BudgetError):
        converse(conversation(), plan, call, lambda _: None, charge)  # type: ignore[arg-type] # it calls as a line does
    assert done == ["charged a", "sent a", "charged b"]


def _epsilon(method: CollaFuse) -> float:
    snr = float(method.diffusion.schedule.snr()[method.step_of("a")])
    return epsilon(mu_of(snr, box_norm(SIZE**2)), 1e-5)
