"""Rounds and bytes are a recipe's, over all its runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manyhands.errors import BudgetError
from manyhands.federation.usage import Usage, Used
from manyhands.messages.message import Message, encoded_size


def update(value: float, number: int = 0) -> Message:
    return Message("update", {"x": torch.full((4,), value)}, {"round": number})


def test_rounds_count_over_all_runs_of_a_recipe_and_not_those_of_another(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        Usage(tmp_path, "a", rounds=3).charge(update(value), closes_round=True)
    with pytest.raises(BudgetError, match="has had its 3 rounds over all runs"):
        Usage(tmp_path, "a", rounds=3).charge(update(4.0), closes_round=True)
    Usage(tmp_path, "b", rounds=3).charge(update(4.0), closes_round=True)
    assert Usage(tmp_path, "a").read().rounds == 3


def test_a_round_that_is_done_again_to_the_same_weights_is_no_further_one(tmp_path: Path) -> None:
    usage = Usage(tmp_path, "a", rounds=2)
    for value in (1.0, 2.0, 1.0, 2.0):
        usage.charge(update(value), closes_round=True)
    assert usage.read().rounds == 2
    with pytest.raises(BudgetError):
        usage.charge(update(1.5), closes_round=True)


def test_rounds_that_send_no_weights_count_as_others_do(tmp_path: Path) -> None:
    usage = Usage(tmp_path, "a", rounds=3)
    for run, number in (("x", 0), ("x", 1), ("x", 1), ("x-2", 0)):
        usage.charge(Message("progress", facts={"round": number}), closes_round=True, run=run)
    assert usage.read().rounds == 3
    with pytest.raises(BudgetError):
        usage.charge(Message("progress", facts={"round": 1}), closes_round=True, run="x-2")


def test_bytes_are_counted_as_they_are_sent(tmp_path: Path) -> None:
    size = encoded_size(update(1.0))
    usage = Usage(tmp_path, "a", sent=2 * size)
    usage.charge(update(1.0), closes_round=False)
    usage.charge(update(2.0), closes_round=True)
    with pytest.raises(BudgetError, match="would have left for this recipe over all runs"):
        usage.charge(update(3.0), closes_round=False)
    assert usage.read() == Used(rounds=1, bytes=2 * size)


def test_a_new_run_that_would_go_beyond_is_refused_before_it_begins(tmp_path: Path) -> None:
    usage = Usage(tmp_path, "a", rounds=5, sent=1 << 20)
    assert usage.refusals(5, 1 << 20) == []
    usage.charge(update(1.0), closes_round=True)
    assert len(usage.refusals(5, 1 << 20)) == 2
    assert usage.refusals(4, 100) == []


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"rounds": "x"}', b"\xff"])
def test_a_file_that_was_damaged_stops_the_site_from_sending(tmp_path: Path, raw: bytes) -> None:
    usage = Usage(tmp_path, "a")
    usage.charge(update(1.0), closes_round=True)
    usage.path.write_bytes(raw)
    with pytest.raises(BudgetError, match="cannot be read .* nothing is sent until"):
        usage.charge(update(1.0), closes_round=True)
    assert usage.path.read_bytes() == raw
