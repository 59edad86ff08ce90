"""A site's policy is law there: what asks for more is refused by name, and one changed byte is another recipe."""

from __future__ import annotations

import math
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from manyhands.errors import RecipeError
from manyhands.federation.approval import approve, approved
from manyhands.federation.policy import PUBLIC_IMAGES, Policy, describe_run, recipe_hash, recipe_text
from manyhands.messages.outgoing import Images
from manyhands.registry import METHODS
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import load_recipe, parse_recipe, read
from manyhands.runs.shipped import recipe_path
from manyhands.runs.sweep import load_sweep
from tests.shipped_recipes import complete_recipes

IMAGES, SITE = 100, "silo-0"
CLASSLESS = ("method.model.classes=0",)
GAN = """
name = "rival"
seed = 1
[data]
size = 16
[data.source]
kind = "digits"
[partition]
kind = "iid"
silos = 2
[method]
kind = "{kind}"
rounds = 6
[method.model]
kind = "gan"
width = 4
[method.training]
batch = 16
steps = 4
"""


@cache
def recipe(name: str, *changes: str) -> Recipe:
    return load_recipe(recipe_path(name), changes)


@cache
def offer(case: str) -> Recipe:
    """One of the runs that the table below is about."""
    if case in OFFERS:
        return recipe(*OFFERS[case])
    return parse_recipe(tomllib.loads(GAN.format(kind=case)), case)


CUT, TOLD = "digits-collafuse", "method.labels=withhold"
OFFERS = {
    "fedavg": ("digits-fedavg",),
    "fedavg, one step a round": ("digits-fedavg", "method.training.steps=1"),
    "fedavg of the way up": ("digits-fedavg", "method.share=up"),
    "fedavg, autoencoder": ("digits-autoencoder",),
    "fedavg, latents": ("digits-latent",),
    "local": ("digits-fedavg", "method.kind=local"),
    "central": ("digits-fedavg", "method.kind=central"),
    "huscf": ("digits-huscf",),
    "collafuse at -15 dB": (CUT, TOLD, "method.cut={ snr_db = -15 }"),
    "collafuse at -3 dB": (CUT, TOLD, "method.cut={ snr_db = -3 }"),
    "collafuse, authors'": (CUT, TOLD, "method.cut={ snr_db = -3 }", "method.mode=authors"),
    "collafuse at 9 dB": (CUT, TOLD),
    "collafuse, hostile cut": (CUT, TOLD, "method.cut=0.001"),
    "collafuse at cut 0": (CUT, TOLD, "method.cut=0"),
    "collafuse at cut 1": (CUT, TOLD, "method.cut=1"),
    "collafuse, fresh": (CUT, TOLD, "method.cut={ snr_db = -15 }", "method.release=fresh"),
    "collafuse with labels": (CUT, "method.cut={ snr_db = -3 }"),
    "collafuse, random labels": (CUT, "method.cut={ snr_db = -15 }", "method.labels=randomised"),
    "collafuse, federated": (CUT, TOLD, "method.cut={ snr_db = -3 }", "method.federate_silos=true"),
}
POLICIES: dict[str, dict[str, Any]] = {
    "default": {},
    "limits": {"approve": "limits"},
    "images": {"images": True},
    "labels": {"labels": True},
    "computable": {"computable": True},
    "epsilon": {"max_epsilon": 50, "approve": "limits"},
    "snr": {"max_snr_db": 0, "approve": "limits"},
    "releases": {"max_releases": 1, "approve": "limits"},
}
"""The default, and each limit by itself; where one of the noise is said, no person need approve."""
DECISIONS = """
                           default limits images labels computable epsilon snr releases
fedavg                     yes     yes    yes    yes    yes        yes     yes yes
fedavg, one step a round   no      no     yes    no     yes        no      no  no
fedavg of the way up       yes     yes    yes    yes    yes        yes     yes yes
fedavg, autoencoder        yes     yes    yes    yes    yes        yes     yes yes
fedavg, latents            yes     yes    yes    yes    yes        yes     yes yes
local                      yes     yes    yes    yes    yes        yes     yes yes
central                    no      no     no     no     no         no      no  no
huscf                      no      no     no     no     yes        no      no  no
mdgan                      yes     yes    yes    yes    yes        yes     yes yes
splitgan                   yes     yes    yes    yes    yes        yes     yes yes
pflgan                     yes     yes    yes    yes    yes        yes     yes yes
hflgan                     yes     yes    yes    yes    yes        yes     yes yes
collafuse at -15 dB        yes     no     yes    yes    yes        yes     yes yes
collafuse at -3 dB         yes     no     yes    yes    yes        no      yes yes
collafuse, authors'        yes     no     yes    yes    yes        no      yes yes
collafuse at 9 dB          no      no     yes    no     yes        no      no  no
collafuse, hostile cut     no      no     yes    no     yes        no      no  no
collafuse at cut 0         no      no     yes    no     no         no      no  no
collafuse at cut 1         yes     yes    yes    yes    yes        yes     yes yes
collafuse, fresh           no      no     yes    no     yes        no      no  no
collafuse with labels      no      no     no     yes    no         no      no  no
collafuse, random labels   no      no     no     yes    no         no      no  no
collafuse, federated       yes     no     yes    yes    yes        no      yes yes
"""
HEADS, *ROWS = DECISIONS.strip("\n").splitlines()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[:26].strip())
def test_every_method_against_the_default_policy_and_each_single_limit(row: str) -> None:
    case, decisions = row[:26].strip(), dict(zip(HEADS.split(), row[26:].split(), strict=True))
    run = offer(case)
    refusals = {name: Policy(**fields).refusals(run, IMAGES, SITE) for name, fields in POLICIES.items()}
    assert {name: "no" if lines else "yes" for name, lines in refusals.items()} == decisions, refusals


def test_the_table_has_every_method_that_is_shipped() -> None:
    assert {offer(row[:26].strip()).method.model_dump()["kind"] for row in ROWS} == set(METHODS.classes)


@pytest.mark.parametrize(
    ("fields", "case", "why"),
    [
        ({"methods": ("collafuse",)}, "fedavg", "method 'fedavg' is not one of collafuse"),
        ({"rounds": 5}, "fedavg", "rounds, but 5 are allowed"),
        ({"bytes": 1000}, "fedavg", "would leave, but 1.0 kB are allowed"),
        ({"bytes": 100_000}, "huscf", "would leave, but 100.0 kB are allowed"),
        ({}, "collafuse with labels", "labels would leave"),
        ({}, "collafuse at cut 0", "images would leave: its images, as they are"),
        ({}, "collafuse, hostile cut", "could be computed from what leaves: its images, noised to an SNR of 43.8 dB"),
        ({}, "huscf", "images and labels could be computed from what leaves: the activations of the first blocks of"),
        ({"images": True}, "huscf", "labels could be computed from what leaves"),
        ({}, "central", "images would leave"),
        ({}, "fedavg, one step a round", "images could be computed from what leaves: the weights"),
        ({"max_epsilon": 50}, "collafuse at 9 dB", "would have epsilon 1,338 at delta 1e-05, but 50 is allowed"),
        ({"max_snr_db": 9}, "collafuse at 9 dB", "an image would have an SNR of 9.5 dB, but 9 dB is allowed"),
        ({"max_releases": 10}, "collafuse, fresh", "times, but 10 is allowed"),
        ({"approve": "limits"}, "collafuse at -3 dB", "allows noised images only with max_epsilon, max_snr_db or"),
        ({"min_head": 2}, "huscf", "min_head is 1, but must be at least 2"),
    ],
)  # fmt: skip
def test_a_run_that_asks_for_more_is_refused_by_name(fields: dict[str, object], case: str, why: str) -> None:
    refusals = Policy(**fields).refusals(offer(case), IMAGES, SITE)
    assert any(why in refusal for refusal in refusals), refusals


def test_a_site_that_says_how_noisy_is_not_asked_whether_images_can_be_computed() -> None:
    assert Policy(max_snr_db=10).refusals(offer("collafuse at 9 dB"), IMAGES, SITE) == []
    assert Policy(max_epsilon=2000).refusals(offer("collafuse at 9 dB"), IMAGES, SITE) == []
    assert Policy(max_releases=1).refusals(offer("collafuse at 9 dB"), IMAGES, SITE)


def test_releases_of_an_image_count_together_and_so_does_a_random_label() -> None:
    once, fresh = offer("collafuse at -15 dB"), offer("collafuse, fresh")
    count = fresh.method.plan().outgoing_of(SITE)[0].releases(IMAGES)  # type: ignore[attr-defined]
    assert count == fresh.method.rounds * -(-fresh.method.training.seen(IMAGES) // IMAGES)
    level = -15.0 + 10 * math.log10(count)
    assert Policy(max_snr_db=level - 0.5).refusals(fresh, IMAGES, SITE)
    assert Policy(max_snr_db=level + 0.5).refusals(fresh, IMAGES, SITE) == []
    spent = once.method.plan().outgoing_of(SITE)[0].epsilon(IMAGES)  # type: ignore[attr-defined]
    both = offer("collafuse, random labels")
    assert Policy(labels=True, max_epsilon=spent + 0.5).refusals(both, IMAGES, SITE)
    assert Policy(labels=True, max_epsilon=spent + 1.1).refusals(both, IMAGES, SITE) == []
    assert Policy(max_epsilon=spent + 0.5).refusals(once, IMAGES, SITE) == []
    assert Policy(max_epsilon=spent + 0.5, delta=1e-9).refusals(once, IMAGES, SITE), "at a smaller delta it is more"


def test_the_decision_is_about_this_sites_own_cut() -> None:
    asked = recipe(CUT, TOLD, "method.cut={ snr_db = -3 }", "method.cuts={ silo-1 = 0.001, silo-2 = 1 }")
    refusals = {site: Policy().refusals(asked, IMAGES, site) for site in ("silo-0", "silo-1", "silo-2")}
    assert [bool(lines) for lines in refusals.values()] == [False, True, False]
    strict = Policy(max_snr_db=-20)
    assert [bool(strict.refusals(asked, IMAGES, site)) for site in refusals] == [True, True, False]
    kinder = recipe(CUT, TOLD, "method.cut=0.001", "method.cuts={ silo-1 = { snr_db = -3 } }")
    assert Policy().refusals(kinder, IMAGES, "silo-0")
    assert Policy().refusals(kinder, IMAGES, "silo-1") == []


@pytest.mark.parametrize("path", complete_recipes(), ids=lambda path: path.stem)
def test_the_demo_takes_every_shipped_recipe_but_images_as_they_are(path: Path) -> None:
    for run in load_sweep(path, []).variants:
        asked, site = run.recipe, run.recipe.partition.names()[0]
        refusals = PUBLIC_IMAGES.refusals(asked, IMAGES, site)
        away = any(isinstance(kind, Images) for kind in asked.method.plan().outgoing_of(site))
        assert bool(refusals) == away, refusals


@pytest.mark.parametrize("name", ["digits-fedavg", "digits-huscf"])
def test_a_run_that_keeps_to_the_limits_may_run(name: str) -> None:
    policy = Policy(methods=("fedavg", "huscf"), rounds=100, bytes=10**11, min_head=1, computable=True)
    assert policy.refusals(recipe(name), IMAGES, SITE) == []


def test_any_change_of_a_recipe_is_another_hash(tmp_path: Path) -> None:
    text = recipe_text(recipe("digits-fedavg"))
    approve(tmp_path, [recipe_hash(text)])
    assert recipe_hash(text) in approved(tmp_path)
    for place in range(0, len(text), 7):
        changed = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
        assert recipe_hash(changed) not in approved(tmp_path)


def test_approvals_are_kept_beside_each_other(tmp_path: Path) -> None:
    approve(tmp_path / "site", ["a" * 64])
    approve(tmp_path / "site", ["b" * 64])
    assert approved(tmp_path / "site") == {"a" * 64, "b" * 64}


def test_an_operator_reads_first_what_is_given_away_then_what_leaves_how_often_and_how_noisy() -> None:
    lines = describe_run(recipe("digits-collafuse"), "a", IMAGES)
    assert lines[2].startswith("This run gives its images away: they leave noised to an SNR of 9.5 dB. That is an eps")
    assert lines[3].startswith("leaves (once an image): its images, noised to an SNR of 9.5 dB. From it: each image")
    words = "\n".join(lines)
    assert "this site would send about" in words
    assert words.index("leaves (") < words.index("in no message:")
    assert "none (no differential privacy)" in "\n".join(describe_run(recipe("digits-fedavg"), "a", IMAGES))


def test_an_operator_reads_of_its_own_cut_alone() -> None:
    asked = recipe(CUT, TOLD, "method.cut={ snr_db = -15 }", "method.cuts={ silo-1 = 0.001 }")
    assert "43.8 dB. From it" in "\n".join(describe_run(asked, "silo-1", IMAGES))
    assert "43.8 dB. From it" not in "\n".join(describe_run(asked, "silo-0", IMAGES))


@pytest.mark.parametrize(("text", "meant"), [("round = 3", "rounds"), ("methods = ['fedavgg']", "fedavg")])
def test_a_policy_that_says_what_is_not_known_is_refused_with_its_place(tmp_path: Path, text: str, meant: str) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(RecipeError, match=rf"policy\.toml: .*did you mean '{meant}'\?"):
        read(Policy, tmp_path / "policy.toml", "policy")
