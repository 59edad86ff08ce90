"""The quorum: who is enough to go on, and what is said where too few are left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyhands.errors import QuorumLost
from manyhands.silos.quorum import can_reach_quorum, check_present, check_senders, has_quorum

few = st.integers(1, 6)


@given(few, few, few)
def test_more_silos_are_never_too_few_and_all_who_are_left_are_enough(quorum: int, present: int, silos: int) -> None:
    assert has_quorum(quorum, silos, silos)
    assert not has_quorum(quorum, 0, silos)
    assert has_quorum(quorum, present + 1, silos) >= has_quorum(quorum, present, silos)
    assert has_quorum(quorum + 1, present, silos) <= has_quorum(quorum, present, silos)
    assert can_reach_quorum(quorum, silos) == (quorum <= silos)
    assert not can_reach_quorum(0, silos)


@given(few, st.integers(0, 6), few)
def test_the_run_stops_exactly_where_there_is_no_quorum(quorum: int, present: int, silos: int) -> None:
    if has_quorum(quorum, present, silos):
        check_present(quorum, present, silos, {"a": "silent"})
    else:
        with pytest.raises(QuorumLost):
            check_present(quorum, present, silos, {"a": "silent"})


def test_who_is_missing_is_named_with_the_reason() -> None:
    missing = {"b": "its policy", "a": "silent"}
    with pytest.raises(QuorumLost, match=r"^1 silos are left, the recipe asks for 2 \(a: silent; b: its policy\)$"):
        check_present(2, 1, 3, missing)
    with pytest.raises(QuorumLost, match=r"^0 sites are there, the recipe asks for 2$"):
        check_present(2, 0, 3, {}, "sites are there")
    with pytest.raises(QuorumLost, match=r"^round 3: fewer than 2 silos could send anything \(a: silent; b: its"):
        check_senders(2, 1, 2, missing)
    check_senders(2, 2, 2, missing)
