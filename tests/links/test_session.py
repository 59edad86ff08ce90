"""Calls that come in any order, twice or late: each is applied at most once, and a session that ended never again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.errors import Refused
from manyhands.links.coordinator import RoundCoordinator
from manyhands.links.exchange import ClientSession, ServerSession
from manyhands.links.session import MAX_RETIRED_SESSIONS, Session
from manyhands.messages.message import Message
from tests.links.test_coordinator import IMAGES, PLAN, Summing

Call = tuple[str, int]
calls = st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.integers(0, 4)), max_size=40)


def by_session(first: int) -> Callable[[list[Call]], list[Call]]:
    def applied(sent: list[Call]) -> list[Call]:
        session, begun = Session(first), []
        for call in sent:
            if session.may_begin(*call):
                assert not session.is_open(*call)
                session.begin(*call)
                assert session.is_open(*call) == (call[1] > 0)
                begun.append(call)
        return begun

    return applied


def by_coordinator(sent: list[Call]) -> list[Call]:
    """Each answer has the number of calls so far, so that a call that is sent again must get the same one."""
    server, begun, answers = Summing(), [], {}
    coordinator = RoundCoordinator(server, PLAN, IMAGES)
    for name, number in sent:
        before = server.asked
        try:
            coordinator.submit("a", Message("ask"), name, number)
        except Refused:
            continue
        answer = coordinator.collect("a", name)
        assert answer is not None
        if server.asked > before:
            begun.append((name, number))
            answers[name, number] = answer.facts
        assert answers[name, number] == answer.facts == {"count": server.asked}
    return begun


def by_exchange(sent: list[Call]) -> list[Call]:
    server, received = ServerSession(PLAN.bounds("up")), []
    for name, number in sent:
        frames = ClientSession(Message("ask"), name, number).begin()
        received += [(name, number) for frame in frames if server.take(frame)[1] is not None]
    return received


@pytest.mark.parametrize(
    "applied", [by_session(0), by_session(1), by_coordinator, by_exchange], ids=["any", "from 1", "barriers", "frames"]
)
@settings(max_examples=150, deadline=None)
@given(sent=calls)
def test_each_call_is_applied_at_most_once_and_a_session_that_ended_never_again(
    applied: Callable[[list[Call]], list[Call]], sent: list[Call]
) -> None:
    begun = applied(sent)
    numbered = [call for call in begun if call[1]]
    assert len(set(numbered)) == len(numbered)
    ended: set[str] = set()
    for (name, number), (following, next_number) in pairwise(begun):
        if following == name:
            assert next_number == number + 1 or next_number == number == 0
        else:
            ended.add(name)
        assert following not in ended


@given(st.integers(1, 5))
def test_a_session_in_order_is_taken_whole(count: int) -> None:
    sent = [(name, number) for name in ("a", "b") for number in range(1, count + 1)]
    for applied in (by_session(0), by_session(1), by_coordinator, by_exchange):
        assert applied([call for call in sent for _ in range(2)]) == sent


def test_calls_within_one_process_have_no_number() -> None:
    assert by_coordinator([("", 0)] * 3) == [("", 0)] * 3
    assert by_exchange([("", 0)] * 3) == []  # over a network there is none without


def test_who_sees_every_call_takes_only_a_session_that_it_saw_from_its_first() -> None:
    assert by_session(1)([("a", 7), ("a", 1), ("b", 2), ("a", 2)]) == [("a", 1), ("a", 2)]
    assert by_session(0)([("a", 7), ("a", 8), ("b", 2), ("a", 9)]) == [("a", 7), ("a", 8), ("b", 2)]


def test_many_sessions_are_remembered_and_not_all() -> None:
    session = Session(first=1)
    for number in range(10 * MAX_RETIRED_SESSIONS):
        session.begin(str(number), 1)
        session.retire()
    assert not session.may_begin(str(10 * MAX_RETIRED_SESSIONS - MAX_RETIRED_SESSIONS + 1), 1)
    assert len(session._retired) == MAX_RETIRED_SESSIONS
