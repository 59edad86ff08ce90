"""Calls over a bad network: each is applied once, and its answer is the one that was given."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.errors import Reason, Refused
from manyhands.links import exchange
from manyhands.links.exchange import Calling, Desk, Frame, SessionGone
from manyhands.message import Message, encode

MOST = 1 << 20


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small message has many parts."""
    for name, value in {"PART": 256, "SPOOLED": 4096, "WINDOW": 3}.items():
        monkeypatch.setattr(exchange, name, value)


def message(op: str, size: int) -> Message:
    return Message(op, {"x": torch.arange(size, dtype=torch.float32)}, {"size": size})


def exchanged(calls: list[Message], rng: random.Random, loss: float) -> tuple[list[Message], list[Message]]:
    """What the server heard and what the caller was answered, over a network that loses, repeats and reorders."""
    desk, heard, answered = Desk(MOST), [], []
    for number, call in enumerate(calls, 1):
        calling = Calling(call, "s", number, MOST)
        wires: dict[str, list[Frame]] = {"up": calling.begin(), "down": []}
        turns = 0
        while calling.answer is None:
            turns += 1
            assert turns < 20_000
            way = rng.choice([name for name, frames in wires.items() if frames] or ["none"])
            if way == "none":
                wires["up"] += calling.again()
                continue
            frame = wires[way].pop(rng.randrange(len(wires[way])))
            if rng.random() < loss:
                continue
            if rng.random() < loss:
                wires[way].append(frame)
            if way == "down":
                wires["up"] += calling.take(frame)
                continue
            frames, whole = desk.take(frame)
            wires["down"] += frames
            if whole is not None:
                heard.append(whole)
                wires["down"] += desk.answer(message(whole.op, int(whole.facts["size"]) + 1))
        answered.append(calling.answer)
    return heard, answered


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=4), st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.5]))
def test_every_call_is_applied_once_and_answered_whatever_the_network_does(
    sizes: list[int], seed: int, loss: float
) -> None:
    calls = [message(f"op{i}", size) for i, size in enumerate(sizes)]
    heard, answered = exchanged(calls, random.Random(seed), loss)
    assert [encode(each) for each in heard] == [encode(each) for each in calls]
    assert [encode(each) for each in answered] == [encode(message(f"op{i}", n + 1)) for i, n in enumerate(sizes)]


def test_nobody_is_more_than_a_window_ahead() -> None:
    calling = Calling(message("op", 2000), "s", 1, MOST)
    assert len(calling.begin()) == exchange.WINDOW
    desk = Desk(MOST)
    frames, _ = desk.take(Calling(message("op", 1), "s", 1, MOST).begin()[0])
    frames = desk.answer(message("op", 2000))
    assert len(frames) == exchange.WINDOW
    lie = Frame({"k": "have", "s": "s", "n": 1, "i": 10**9})
    assert len(desk.take(lie)[0]) <= 2 * exchange.WINDOW


def test_a_refusal_is_raised_and_told_again_when_asked() -> None:
    desk, calling = Desk(MOST), Calling(message("op", 1), "s", 1, MOST)
    desk.take(calling.begin()[0])
    desk.answer(Refused(Reason.STALE_ROUND, "is of round 3"))
    (again,), _ = desk.take(calling.again()[0])
    with pytest.raises(Refused, match="stale round: is of round 3"):
        calling.take(again)


@pytest.mark.parametrize("announced", [0, -5, MOST + 1, 1 << 40])
def test_a_size_that_cannot_be_is_refused_before_anything_is_kept(announced: int) -> None:
    (refused,), whole = Desk(MOST).take(Frame({"k": "part", "s": "s", "n": 1, "i": 0, "size": announced}, b"x"))
    assert whole is None
    assert refused.told["reason"] == Reason.MALFORMED


@pytest.mark.parametrize("number", [-1, 1, 1 << 60])
def test_a_part_that_cannot_be_is_refused(number: int) -> None:
    (refused,), whole = Desk(MOST).take(Frame({"k": "part", "s": "s", "n": 1, "i": number, "size": 1}, b"x"))
    assert whole is None
    assert refused.told["reason"] == Reason.MALFORMED


def test_a_session_that_ended_is_gone_for_good() -> None:
    desk = Desk(MOST)
    old, new = (Calling(message("op", 1), session, 1, MOST) for session in ("old", "new"))
    (first,) = old.begin()
    assert desk.take(first)[1] is not None
    assert desk.take(new.begin()[0])[1] is not None
    (gone,), whole = desk.take(first)
    assert whole is None
    with pytest.raises(SessionGone):
        old.take(gone)


def test_whoever_asks_after_a_restart_is_told_to_begin_anew() -> None:
    calling = Calling(message("op", 1), "s", 7, MOST)
    calling.begin()
    (gone,), _ = Desk(MOST).take(calling.again()[0])
    with pytest.raises(SessionGone):
        calling.take(gone)


words = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.binary(max_size=6)
told = st.dictionaries(st.sampled_from(["k", "s", "n", "i", "size", "reason", "x"]), words, max_size=7)
near = st.fixed_dictionaries({
    "k": st.sampled_from(["part", "ask", "have", "want", "gone", "refuse", "wait"]), "s": st.sampled_from(["s", "t"]),
    "n": st.integers(-1, 3), "i": st.integers(-2, 40), "size": st.integers(-1, 6000),
})  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(told | near, st.binary(max_size=300)), max_size=12))
def test_no_frame_makes_either_end_fail_but_by_name(frames: list[tuple[dict[str, Any], bytes]]) -> None:
    desk, calling = Desk(MOST), Calling(message("op", 200), "s", 1, MOST)
    calling.begin()
    for each in frames:
        desk.take(Frame(*each))
        try:
            calling.take(Frame(*each))
        except (Refused, SessionGone):
            break


@pytest.mark.parametrize("kind", ["part", "ask", "have", "other"])
def test_no_answer_is_larger_for_a_frame_of_many_words(kind: str) -> None:
    frames, _ = Desk(MOST).take(Frame({"k": kind, "s": "s" * 65_000, "n": 1, "i": 0, "size": 10}))
    assert [frame.told["reason"] for frame in frames] == [Reason.MALFORMED]
    assert len(repr(frames)) < 2000


def test_a_message_that_there_is_no_room_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exchange, "Spool", full)
    frames, _ = Desk(MOST).take(Frame({"k": "part", "s": "s", "n": 1, "i": 0, "size": MOST}, bytes(10)))
    assert frames[0].told["reason"] == Reason.NOT_NOW
    assert "No space left" in frames[0].told["detail"]
