"""Every method states what leaves by each of its operations; words, table and decision are made from nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from manyhands.errors import RecipeError
from manyhands.formatting import number_text
from manyhands.messages import outgoing
from manyhands.messages.operation import COUNT, Operation, Payload
from manyhands.messages.outgoing.kinds import CANDIDATES
from manyhands.messages.outgoing.summary import FACT_MEANINGS, TECHNICAL_FACTS, for_silo, given_away, never_sent, rows
from manyhands.messages.plan import Plan
from manyhands.privacy.accountant import epsilon, mu_of
from manyhands.runs.recipe import Recipe
from manyhands.runs.sweep import load_sweep
from manyhands.silos.training import Training
from manyhands.tensors import TensorSpec
from tests.federation.test_policy import CUT, OFFERS, ROWS, offer, recipe
from tests.federation.test_policy import TOLD as NO_LABELS
from tests.shipped_recipes import complete_recipes

RECIPES = [run.recipe for path in complete_recipes() for run in load_sweep(path, []).variants]
EVERY: list[Recipe] = [*RECIPES, *(offer(row[:26].strip()) for row in ROWS)]
IMAGES = 200
WAYS = ("way down", "middle")
NOISED: dict[str, Any] = {"snr": 1.0, "norm": 8.0}


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_whatever_an_operation_carries_up_is_stated(recipe: Recipe) -> None:
    plan = recipe.method.plan()
    for name, operation in plan.operations.items():
        assert operation.outgoing or not operation.up.has_tensors, name
        assert set(operation.up.facts) <= FACT_MEANINGS.keys() | TECHNICAL_FACTS, name
    said = " ".join(kind.description for kind in plan.outgoing)
    assert "how many images it has" in said
    assert all(kind.often and kind.computed(IMAGES) and kind.guarantee(IMAGES) for kind in plan.outgoing)


def test_what_gives_most_away_is_told_first_and_each_thing_once() -> None:
    kinds = offer("huscf").method.plan().outgoing
    assert kinds[0].exposed() == ("images", "labels")
    assert len(set(kinds)) == len(kinds)
    words = offer("huscf").method.plan().words()
    assert words[0].startswith(
        "This run gives its images away. What leaves: the activations of the first blocks of its discriminator"
    )
    assert "the server can compute its images and labels" in words[0]


@pytest.mark.parametrize(
    ("case", "absent"),
    [
        ("fedavg", ("images", "labels", "file names")),
        ("fedavg of the way up", ("images", "labels", *(f"weights of the {part}" for part in WAYS), "file names")),
        ("local", ("images", "labels", "weights", "file names")),
        ("central", ("file names",)),
        ("huscf", ("file names",)),
        ("collafuse at -15 dB", ("images that are not noised", "labels", "weights", "file names")),
        ("collafuse at 9 dB", ("labels", "weights", "file names")),
        ("collafuse at cut 0", ("labels", "weights", "file names")),
        ("collafuse with labels", ("images that are not noised", "weights", "file names")),
        ("collafuse, random labels", ("images that are not noised", "weights", "file names")),
        ("collafuse, federated", ("images that are not noised", "labels", "file names")),
    ],
)  # fmt: skip
def test_nothing_is_said_to_stay_that_leaves_or_can_be_computed(case: str, absent: tuple[str, ...]) -> None:
    assert offer(case).method.plan().never_sent == absent
    assert (
        offer(case).method.plan().words()[-1].endswith("this is no guarantee: content may be computed from what leaves")
    )


def test_a_silo_is_told_of_its_own_cut_alone() -> None:
    plan = recipe(CUT, NO_LABELS, "method.cut={ snr_db = -15 }", "method.cuts={ silo-1 = 0, silo-2 = 1 }").method.plan()
    assert [type(plan.outgoing_of(silo)[0]) for silo in ("silo-0", "silo-1", "silo-2")] == [
        outgoing.NoisedImages, outgoing.Images, outgoing.Statistics
    ]  # fmt: skip
    assert not any(isinstance(kind, outgoing.Images | outgoing.NoisedImages) for kind in plan.outgoing_of("silo-2"))
    assert plan.words()[0].startswith("silo-1: This run gives its images away. What leaves: its images, as they are")
    assert "leaves all but silo-1, silo-2 (once an image): its images, noised to an SNR of" in "\n".join(plan.words())


def test_releases_of_an_image_together_are_as_one_at_so_much_the_snr() -> None:
    training = Training(batch=10, steps=6)
    fresh = outgoing.NoisedImages(**NOISED, fresh=outgoing.Fresh(5, training))
    assert [fresh.releases(images) for images in (10, 30, 60, 1000, None)] == [30, 10, 5, 5, None]
    once = outgoing.NoisedImages(**NOISED)
    assert once.releases(None) == 1
    assert fresh.snr_db(60) == pytest.approx(once.snr_db(60) + 10 * math.log10(5))
    assert fresh.epsilon(60) == pytest.approx(epsilon(mu_of(5.0, 8.0), 1e-5))
    assert fresh.epsilon(10) > fresh.epsilon(60) > once.epsilon(60)
    assert outgoing.Fresh(5, Training(batch=10, epochs=2)).releases(None) == 10


def test_images_can_be_computed_where_there_is_more_signal_than_noise() -> None:
    assert outgoing.NoisedImages(snr=1.01, norm=8.0).exposed() == ("images",)
    assert outgoing.NoisedImages(snr=1.0, norm=8.0).exposed() == ()
    many = outgoing.Fresh(2, Training(batch=8, epochs=1))
    assert outgoing.NoisedImages(snr=0.51, norm=8.0, fresh=many).exposed(8) == ("images",)


def test_a_release_gives_its_images_away_by_theory_or_where_there_is_none_by_epsilon() -> None:
    loud, faint = outgoing.NoisedImages(snr=1.0, norm=8.0), outgoing.NoisedImages(snr=1e-3, norm=8.0)
    assert loud.epsilon(None) > 10 > faint.epsilon(None)
    assert "epsilon of" in loud.gives_away()
    assert faint.gives_away() == ""
    assert loud.gives_away(picked=outgoing.Picked(0.009, CANDIDATES)) == ""
    assert "picks the right one for 1.1% of the releases" in loud.gives_away(picked=outgoing.Picked(0.011, CANDIDATES))
    assert "1.1%" in faint.gives_away(picked=outgoing.Picked(0.011, CANDIDATES))
    assert loud.gives_away(picked=outgoing.Picked(0.0, 10)), "ten candidates acquit nobody"
    assert faint.gives_away(picked=outgoing.Picked(1.0, 10)) == ""


def test_what_is_released_anew_nobody_knows_how_often_is_so_once_a_round_at_least() -> None:
    fresh, faint = outgoing.Fresh(20, Training(batch=8, steps=3)), {"snr": 3e-3, "norm": 8.0}
    said = outgoing.NoisedImages(**NOISED, fresh=fresh).gives_away()
    assert "13.0 dB, 20 or more releases of each together" in said
    assert f"an epsilon of {number_text(epsilon(mu_of(1.0, 8.0, 20), 1e-5))} at" in said
    assert not outgoing.NoisedImages(**faint).gives_away()
    assert outgoing.NoisedImages(**faint, fresh=fresh).gives_away()


def test_weights_after_a_single_step_are_a_gradient() -> None:
    one, two = Training(batch=50, epochs=1), Training(batch=8, steps=2)
    assert outgoing.Weights(of="it", training=one).exposed(40) == ("images",)
    assert outgoing.Weights(of="it", training=one).exposed(60) == ()
    assert outgoing.Weights(of="it", training=two).exposed(40) == ()
    assert outgoing.Weights(of="it", training=one, readable=False).exposed(40) == ()


def test_layers_that_the_server_does_not_know_tell_it_nothing() -> None:
    head: dict[str, Any] = {"by": "its head", "on": "its images", "images": True, "labels": True}
    assert outgoing.Activations(**head).exposed() == ("images", "labels")
    assert outgoing.Activations(**head, known=False).exposed() == ()
    assert outgoing.Activations(**head, known=False).gives_away() == ""


def test_a_fact_that_nobody_has_words_for_is_told_by_its_name() -> None:
    plan = Plan({"tell": Operation("tells", "once", Payload(facts={"round": int, "blood_group": str}))})
    assert plan.outgoing == (outgoing.Statistics(of=("blood_group",), often="once"),)


def test_an_operation_that_sends_tensors_must_name_their_kinds() -> None:
    sent = {"x": TensorSpec((2,), torch.float32)}
    for up in (Payload(sent), Payload(others=(sent,))):
        with pytest.raises(RecipeError, match="plan: 'tell' sends tensors, but its `outgoing` is empty"):
            Plan({"tell": Operation("tells", "once", up)})
    assert Plan({"tell": Operation("tells", "once", down=Payload(sent))})


def test_an_operation_that_closes_a_round_is_a_barrier_and_says_which_round() -> None:
    up = Payload(facts={"round": COUNT})
    for operation in (Operation("ends", "each round", up, closes_round=True),
                      Operation("ends", "each round", barrier=True, closes_round=True)):  # fmt: skip
        with pytest.raises(
            RecipeError, match=r"plan: 'end' closes a round, so it must be a barrier, and `up` must have"
        ):
            Plan({"end": operation})
    assert Plan({"end": Operation("ends", "each round", up, barrier=True, closes_round=True)})


def test_silos_of_which_the_same_is_told_stand_together() -> None:
    kinds = (outgoing.Images(silo="a", often="once"), outgoing.Labels(often="once"))
    table = rows({silo: (9, for_silo(kinds, silo)) for silo in ("a", "b")})
    assert [row["what"] for row in table] == ["its images, as they are", "its labels"]
    assert [row["silos"] for row in table] == [["a"], ["a", "b"]]
    assert given_away(kinds) == [f"a: {kinds[0].gives_away()}"]
    assert never_sent(kinds) == ("weights", "file names")


def test_the_table_of_the_policies_is_about_the_same_runs() -> None:
    assert OFFERS.keys() < {row[:26].strip() for row in ROWS}
