"""Each fact has a type and a range; what is none is refused by name, and never repeated."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyhands.errors import MessageError, Reason, Refused
from manyhands.files.strict_json import finite_json, strict_json
from manyhands.messages.facts import Fact, Flag, Listed, Number, Table, Text, Whole, check_facts, header_bytes
from manyhands.messages.message import Message, encode, head_size
from manyhands.messages.operation import MAX_LOSS, round_facts

ROUND = {"round": 1, "images": 5, "loss": 0.5, "seen": 5, "flops": 9, "withheld": ""}


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


ODD: list[Any] = [nested(100_000), {"a": nested(50_000)}, "x" * 10**6, 10**400, -1, 1.7e308, None, True, math.nan]


@pytest.mark.parametrize("fact", [Whole(0, 9), Text(5), Listed(Whole(0, 9), 3), Number(0.0, 9.0)])
@pytest.mark.parametrize("number", range(len(ODD)))
def test_what_is_refused_is_told_short_whatever_it_is(fact: Fact, number: int) -> None:
    with pytest.raises(Refused) as refused:
        fact.check("a", ODD[number])
    assert len(refused.value.detail) < 200


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"loss": 1.7e308}, Reason.WRONG_FACTS),
        ({"loss": -2 * MAX_LOSS}, Reason.WRONG_FACTS),
        ({"loss": math.inf}, Reason.NOT_FINITE),
        ({"seen": -1}, Reason.WRONG_FACTS),
        ({"flops": -1}, Reason.WRONG_FACTS),
        ({"flops": 10**22}, Reason.WRONG_FACTS),
        ({"images": 0}, Reason.WRONG_FACTS),
        ({"round": 3}, Reason.WRONG_FACTS),
        ({"withheld": "x" * 1001}, Reason.WRONG_FACTS),
        ({"more": 1}, Reason.WRONG_FACTS),
        ({}, None),
        ({"loss": None, "withheld": "x" * 1000, "round": 2}, None),
    ],
)
def test_what_a_round_came_to_is_in_range(facts: dict[str, Any], reason: Reason | None) -> None:
    refused = None
    try:
        check_facts(round_facts(3), ROUND | facts)
    except Refused as refusal:
        refused = refusal.reason
    assert refused is reason


def test_the_sum_of_allowed_losses_is_finite_and_json() -> None:
    assert math.isfinite(sum([MAX_LOSS] * 100_000))
    assert json.loads(strict_json(sum([MAX_LOSS] * 100_000))) == MAX_LOSS * 100_000


kinds: dict[str, Fact] = {
    "a": Whole(-5, 10**21), "b": Number(-1e12, 1e12), "c": Text(7), "d": Flag(), "e": Listed(Text(3), 4), "f": Table(9)
}  # fmt: skip
fitting = st.fixed_dictionaries({
    "a": st.integers(-5, 10**21), "b": st.floats(-1e12, 1e12), "c": st.text(st.characters(codec="utf-8"), max_size=7),
    "d": st.booleans(), "e": st.lists(st.text(st.characters(codec="utf-8"), max_size=3), max_size=4), "f": st.just({}),
})  # fmt: skip


@given(fitting)
def test_a_header_of_what_fits_is_never_larger_than_was_said(facts: dict[str, Any]) -> None:
    check_facts(kinds, facts)
    assert head_size(encode(Message("o" * 32, {}, facts))) - 8 <= header_bytes(kinds)


def test_half_of_a_character_can_neither_be_sent_nor_said() -> None:
    with pytest.raises(MessageError, match="not a finite JSON"):
        encode(Message("op", {}, {"a": "\ud800"}))


def test_files_hold_json_whatever_is_written() -> None:
    value = {"a": [math.nan, 1.5], "b": {"c": math.inf}, "d": "\ud800"}
    text = finite_json(value)
    assert text.isascii()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text) == {"a": [None, 1.5], "b": {"c": None}, "d": "\ud800"}
