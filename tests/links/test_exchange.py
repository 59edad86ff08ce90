"""Calls over a bad network: each is applied once, and its answer is the one that the server gave."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.errors import Reason, Refused
from manyhands.links import exchange
from manyhands.links.exchange import ClientSession, ServerSession, SessionGone
from manyhands.links.frame import FRAME_FIELDS, Frame, read_frame
from manyhands.messages.message import UNBOUNDED, Bounds, Message, encode

BOUNDS = UNBOUNDED._replace(size=1 << 20)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small message has many parts."""
    for name, value in {"PART_BYTES": 256, "MAX_MEMORY_BYTES": 4096, "WINDOW_PARTS": 3}.items():
        monkeypatch.setattr(exchange, name, value)


@pytest.fixture(autouse=True)
def nothing_odd_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an end sends is a frame to the other."""

    def checked(fields: dict[str, Any], payload: bytes = b"") -> Frame:
        frame = Frame(fields, payload)
        assert read_frame(*frame) == frame
        return frame

    monkeypatch.setattr(exchange, "Frame", checked)


def message(op: str, size: int) -> Message:
    return Message(op, {"x": torch.arange(size, dtype=torch.float32)}, {"size": size})


def exchanged(calls: list[Message], rng: random.Random, loss: float) -> tuple[list[Message], list[Message]]:
    """What the server received and what the client was answered, over a network that loses, repeats and reorders."""
    server, received, answered = ServerSession(BOUNDS), [], []
    for number, call in enumerate(calls, 1):
        client = ClientSession(call, "s", number, BOUNDS)
        wires: dict[str, list[Frame]] = {"up": client.begin(), "down": []}
        turns = 0
        while client.answer is None:
            turns += 1
            assert turns < 20_000
            way = rng.choice([name for name, frames in wires.items() if frames] or ["none"])
            if way == "none":
                wires["up"] += client.ask_again()
                continue
            frame = wires[way].pop(rng.randrange(len(wires[way])))
            if rng.random() < loss:
                continue
            if rng.random() < loss:
                wires[way].append(frame)
            if way == "down":
                wires["up"] += client.take(frame)
                continue
            frames, whole = server.take(frame)
            wires["down"] += frames
            if whole is not None:
                received.append(whole)
                wires["down"] += server.answer(message(whole.op, int(whole.facts["size"]) + 1))
        answered.append(client.answer)
    return received, answered


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=4), st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.5]))
def test_every_call_is_applied_once_and_answered_whatever_the_network_does(
    sizes: list[int], seed: int, loss: float
) -> None:
    calls = [message(f"op{i}", size) for i, size in enumerate(sizes)]
    received, answered = exchanged(calls, random.Random(seed), loss)
    assert [encode(each) for each in received] == [encode(each) for each in calls]
    assert [encode(each) for each in answered] == [encode(message(f"op{i}", n + 1)) for i, n in enumerate(sizes)]


def test_nobody_is_more_than_a_window_ahead() -> None:
    client = ClientSession(message("op", 2000), "s", 1, BOUNDS)
    assert len(client.begin()) == exchange.WINDOW_PARTS
    server = ServerSession(BOUNDS)
    frames, _ = server.take(ClientSession(message("op", 1), "s", 1, BOUNDS).begin()[0])
    frames = server.answer(message("op", 2000))
    assert len(frames) == exchange.WINDOW_PARTS
    lie = Frame({"k": "have", "s": "s", "n": 1, "i": 10**9})
    assert len(server.take(lie)[0]) <= 2 * exchange.WINDOW_PARTS


def test_a_refusal_is_raised_and_told_again_when_asked() -> None:
    server, client = ServerSession(BOUNDS), ClientSession(message("op", 1), "s", 1, BOUNDS)
    server.take(client.begin()[0])
    server.answer(Refused(Reason.STALE_ROUND, "is of round 3"))
    (again,), _ = server.take(client.ask_again()[0])
    with pytest.raises(Refused, match="stale round: is of round 3"):
        client.take(again)


@pytest.mark.parametrize("announced", [0, -5, BOUNDS.size + 1, 1 << 40])
def test_a_size_that_cannot_be_is_refused_before_anything_is_kept(announced: int) -> None:
    (refused,), whole = ServerSession(BOUNDS).take(
        Frame({"k": "part", "s": "s", "n": 1, "i": 0, "size": announced}, b"x")
    )
    assert whole is None
    assert refused.fields["reason"] == Reason.MALFORMED


@pytest.mark.parametrize("number", [-1, 1, 1 << 60])
def test_a_part_that_cannot_be_is_refused(number: int) -> None:
    (refused,), whole = ServerSession(BOUNDS).take(Frame({"k": "part", "s": "s", "n": 1, "i": number, "size": 1}, b"x"))
    assert whole is None
    assert refused.fields["reason"] == Reason.MALFORMED


def test_a_session_that_ended_is_gone_for_good() -> None:
    server = ServerSession(BOUNDS)
    old, new = (ClientSession(message("op", 1), session, 1, BOUNDS) for session in ("old", "new"))
    (first,) = old.begin()
    assert server.take(first)[1] is not None
    assert server.take(new.begin()[0])[1] is not None
    (gone,), whole = server.take(first)
    assert whole is None
    with pytest.raises(SessionGone):
        old.take(gone)


def test_whoever_asks_after_a_restart_is_told_to_begin_anew() -> None:
    client = ClientSession(message("op", 1), "s", 7, BOUNDS)
    client.begin()
    (gone,), _ = ServerSession(BOUNDS).take(client.ask_again()[0])
    with pytest.raises(SessionGone):
        client.take(gone)


words = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.binary(max_size=6)
fields = st.dictionaries(st.sampled_from(["k", "s", "n", "i", "size", "reason", "x"]), words, max_size=7)
near = st.fixed_dictionaries({
    "k": st.sampled_from(["part", "ask", "have", "want", "gone", "refuse", "wait"]), "s": st.sampled_from(["s", "t"]),
    "n": st.integers(-1, 3), "i": st.integers(-2, 40), "size": st.integers(-1, 6000),
})  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(fields | near, st.binary(max_size=300)), max_size=12))
def test_no_frame_makes_either_end_fail_but_by_name(frames: list[tuple[dict[str, Any], bytes]]) -> None:
    server, client = ServerSession(BOUNDS), ClientSession(message("op", 200), "s", 1, BOUNDS)
    client.begin()
    for each in frames:
        server.take(read_frame(*each))
        try:
            client.take(read_frame(*each))
        except (Refused, SessionGone):
            break


@pytest.mark.parametrize("kind", ["part", "ask", "have", "other"])
def test_no_answer_is_larger_for_a_frame_of_many_words(kind: str) -> None:
    odd = read_frame({"k": kind, "s": "s" * 65_000, "n": 1, "i": 0, "size": 10}, b"")
    frames, whole = ServerSession(BOUNDS).take(odd)
    assert (frames, whole) == ([], None)
    assert len(repr(odd)) < 500


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


GOOD = {"k": "part", "s": "s", "n": 1, "i": 0, "size": 10}


@pytest.mark.parametrize(
    "fields",
    [
        GOOD | {"i": nested(1000)},
        GOOD | {"i": nested(100_000)},
        GOOD | {"more": {"a": nested(1000)}},
        GOOD | {"k": nested(1000)},
        GOOD | {"k": "odd", "why": "x"},
        GOOD | {"size": 10**30},
        GOOD | {"size": True},
        {name: value for name, value in GOOD.items() if name != "i"},
    ],
)
def test_an_invalid_frame_is_reported_to_its_sender_and_to_nobody_else(fields: dict[str, Any]) -> None:
    odd = read_frame(fields, b"x" * 10)
    assert odd.fields.keys() == {"k", "s", "n", "why"}
    server, other = ServerSession(BOUNDS), ClientSession(message("op", 1), "t", 1)
    (refused,), whole = server.take(odd)
    assert whole is None
    assert refused.fields["reason"] == Reason.MALFORMED
    assert other.take(odd) == []
    assert read_frame(*refused).fields["k"] == "refuse"


@pytest.mark.parametrize(
    "fields", [None, 5, nested(1000), {"s": nested(1000)}, {b"k": 1}, {1: 2}, {"s": "\x1b", "n": 1}]
)
def test_what_is_not_even_of_a_call_is_dropped(fields: Any) -> None:
    odd = read_frame(fields, object())
    assert odd.fields.keys() == {"k", "why"}
    assert ServerSession(BOUNDS).take(odd) == ([], None)


@given(st.sampled_from(sorted(FRAME_FIELDS)), st.data())
def test_every_frame_that_is_sent_is_read(kind: str, data: st.DataObject) -> None:
    values = {"s": st.just("s"), "reason": st.sampled_from(list(Reason)).map(str), "detail": st.just("x é")}
    fields = {name: data.draw(values.get(name, st.integers(1, 1 << 32))) for name in FRAME_FIELDS[kind]} | {"k": kind}
    assert read_frame(fields, b"").fields == fields


def test_what_says_that_it_weighs_too_much_is_refused_with_its_first_part() -> None:
    small = Bounds.of(100, 400, 3, 1 << 20)
    many = Message("op", {str(i): torch.ones(0) for i in range(500)})
    long = Message("op", {"x": torch.ones(500)}, {"a": "x" * 200})
    for each, why in ((many, "the index of its tensors has"), (long, "its header has")):
        (refused,), whole = ServerSession(small).take(ClientSession(each, "s", 1).begin()[0])
        assert whole is None
        assert why in refused.fields["detail"]


def test_a_file_holds_no_more_than_has_come_and_was_announced() -> None:
    server, client = ServerSession(BOUNDS), ClientSession(message("op", 5000), "s", 1)
    first, second = client.begin()[:2]
    server.take(first)
    server.take(second)
    server.take(second)
    assert server._in is not None
    assert server._in._spool is not None
    server._in._spool.file.flush()
    assert os.fstat(server._in._spool.fileno()).st_size <= 2 * exchange.PART_BYTES
    more = Frame(second.fields | {"i": 2}, bytes(exchange.PART_BYTES + 1))
    (refused,), _ = server.take(more)
    assert refused.fields["reason"] == Reason.MALFORMED
    assert server._in is None


@pytest.mark.parametrize("op", ["index", "junk"])
def test_an_answer_that_is_none_is_a_refusal_by_name(op: str) -> None:
    client = ClientSession(message("op", 1), "s", 1, Bounds.of(100, 400, 3, 1 << 20))
    answer = Message("op", {str(i): torch.ones(0) for i in range(20)})
    (part,) = ClientSession(answer, "s", 1).begin()[:1] if op == "index" else [Frame(GOOD, b"0123456789")]
    with pytest.raises(Refused, match="the answer is not a valid message"):
        client.take(part)


def test_a_message_that_there_is_no_room_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exchange, "Spool", full)
    frames, _ = ServerSession(BOUNDS).take(
        Frame({"k": "part", "s": "s", "n": 1, "i": 0, "size": BOUNDS.size}, bytes(256))
    )
    assert frames[0].fields["reason"] == Reason.NOT_NOW
    assert "No space left" in frames[0].fields["detail"]
