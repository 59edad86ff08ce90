"""A site's policy is law there: what asks for more is refused by name, and one changed byte is another recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from manyhands.errors import RecipeError
from manyhands.federation.approval import approve, approved
from manyhands.federation.policy import Policy, recipe_hash, recipe_text, told_in_words
from manyhands.recipe import Recipe, load_recipe, read
from manyhands.shipped import recipe_path

IMAGES = 100


def recipe(name: str, *changes: str) -> Recipe:
    return load_recipe(recipe_path(name), changes)


@pytest.mark.parametrize(
    ("told", "name", "why"),
    [
        ({"methods": ("collafuse",)}, "digits-fedavg", "method 'fedavg' is not one of collafuse"),
        ({"rounds": 5}, "digits-fedavg", "rounds, 5 are the most"),
        ({"bytes": 1000}, "digits-fedavg", "would leave, 1.0 kB are the most"),
        ({"bytes": 100_000}, "digits-huscf", "would leave, 100.0 kB are the most"),
        ({}, "digits-collafuse", "labels would leave"),
        ({"labels": True}, ("digits-collafuse", "method.cut=0"), "images would leave"),
        ({"min_head": 2}, "digits-huscf", "min_head is 1, 2 is the least here"),
    ],
)
def test_a_run_that_asks_for_more_is_refused_by_name(
    told: dict[str, object], name: str | tuple[str, ...], why: str
) -> None:
    asked = (name,) if isinstance(name, str) else name
    assert any(why in each for each in Policy(**told).refusals(recipe(*asked), IMAGES))


@pytest.mark.parametrize("name", ["digits-fedavg", "digits-huscf"])
def test_a_run_that_keeps_to_the_limits_may_run(name: str) -> None:
    told = Policy(methods=("fedavg", "huscf"), rounds=100, bytes=10**11, min_head=1)
    assert told.refusals(recipe(name), IMAGES) == []


def test_labels_leave_only_where_the_policy_says_so() -> None:
    assert Policy(labels=True).refusals(recipe("digits-collafuse"), IMAGES) == []
    assert Policy().refusals(recipe("digits-collafuse", "method.labels=withhold"), IMAGES) == []


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


def test_an_operator_reads_what_leaves_how_often_and_how_noisy() -> None:
    words = "\n".join(told_in_words(recipe("digits-collafuse"), "a", IMAGES))
    assert "this site would send about" in words
    assert "dB, epsilon" in words
    assert "never sent:" in words
    assert "no epsilon can be given" in "\n".join(told_in_words(recipe("digits-fedavg"), "a", IMAGES))


@pytest.mark.parametrize(("text", "meant"), [("round = 3", "rounds"), ("methods = ['fedavgg']", "fedavg")])
def test_a_policy_that_says_what_is_not_known_is_refused_with_its_place(tmp_path: Path, text: str, meant: str) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(RecipeError, match=rf"policy\.toml: .*did you mean '{meant}'\?"):
        read(Policy, tmp_path / "policy.toml", "policy")
