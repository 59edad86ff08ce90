from __future__ import annotations

import json
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyhands.errors import MessageError
from manyhands.messages.message import (
    MAGIC,
    MAX_HEADER_BYTES,
    UNBOUNDED,
    Bounds,
    Message,
    decode,
    decode_from,
    encode,
    encoded_size,
    head_size,
    index_bytes,
)
from manyhands.tensors import state_spec

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensors = st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype), shapes, st.sampled_from(DTYPES))
facts = st.dictionaries(
    st.text(max_size=8),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    max_size=4,
)
messages = st.builds(
    Message,
    st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True),
    st.dictionaries(names.filter(lambda name: name != "__metadata__"), tensors, max_size=4),
    facts,
)


@given(messages)
def test_what_is_encoded_comes_back_and_weighs_what_was_counted(message: Message) -> None:
    blob = encode(message)
    assert encoded_size(message) == len(blob)
    assert blob.endswith(safetensors.torch.save(dict(message.tensors)))  # to the byte as the library writes it
    for back in (decode(blob), in_a_file(blob)):
        assert back.op == message.op
        assert back.facts == message.facts
        assert encoded_size(back) == len(blob)
        assert back.tensors.keys() == message.tensors.keys()
        for name, tensor in message.tensors.items():
            assert back.tensors[name].dtype == tensor.dtype
            assert torch.equal(back.tensors[name], tensor)


def in_a_file(blob: bytes, bounds: Bounds = UNBOUNDED) -> Message:
    """The message whose tensors are read from a file, whenever they are asked for."""
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - the message holds it
    file.write(blob[head_size(blob) :])
    file.flush()
    return decode_from(blob[: head_size(blob)], file, bounds)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused_by_name(blob: bytes) -> None:
    with pytest.raises(MessageError):
        decode(blob)


@given(messages, st.data())
def test_a_mutated_message_is_read_strictly_or_refused_by_name(message: Message, data: st.DataObject) -> None:
    blob = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(blob)))
    for raw in (bytes(blob), bytes(blob[:cut])):
        for read in (decode, in_a_file):
            try:
                dict(read(raw).tensors)
            except MessageError:
                continue


def framed(header: bytes, rest: bytes = b"") -> bytes:
    return MAGIC + struct.pack("<I", len(header)) + header + rest


@pytest.mark.parametrize(
    "header",
    [
        b'["op",{"a":NaN}]',
        b'["op",{"a":1,"a":2}]',
        b'["op",[]]',
        b'["Op",{}]',
        b'["op",{},1]',
        b"[" * 10_000,
        b'["op",{"a":' + b"[" * 1000 + b"]" * 1000 + b"}]",
        b'["op",{"a":' + b"[" * 17 + b"]" * 17 + b"}]",
        b'["op",{"a":"\\ud800"}]',
        b'["op",{"\\uDFFF":1}]',
        b"\xff",
        json.dumps(["o" * 40, {}]).encode(),
    ],
)
def test_a_header_that_is_not_strict_is_refused(header: bytes) -> None:
    with pytest.raises(MessageError, match="header"):
        decode(framed(header, encode(Message("op"))[8 + 9 :]))


def test_a_header_that_claims_too_much_is_refused_before_it_is_read() -> None:
    with pytest.raises(MessageError, match="header"):
        decode(MAGIC + struct.pack("<I", MAX_HEADER_BYTES + 1) + b"x" * 10)
    with pytest.raises(MessageError, match="at most"):
        encode(Message("op", {}, {"a": "x" * MAX_HEADER_BYTES}))


def test_facts_must_be_finite_json() -> None:
    for value in (float("nan"), float("inf"), object(), torch.ones(1)):
        with pytest.raises(MessageError):
            encode(Message("op", {}, {"a": value}))


def test_tensors_that_share_memory_travel_apart() -> None:
    whole = torch.arange(6.0)
    back = decode(encode(Message("op", {"a": whole, "b": whole[2:4], "c": whole.reshape(2, 3).T})))
    assert torch.equal(back.tensors["b"], whole[2:4])
    assert torch.equal(back.tensors["c"], whole.reshape(2, 3).T)


def test_a_type_that_does_not_travel_is_refused() -> None:
    head = struct.pack("<4sI", MAGIC, 9) + b'["op",{}]'
    with pytest.raises(MessageError, match="'x' is of a type that a message cannot hold"):
        decode(head + safetensors.torch.save({"x": torch.ones(2, dtype=torch.uint16)}))


SMALL = Bounds.of(100, 400, 3, 64)


def test_a_message_within_its_bounds_is_read() -> None:
    blob = encode(Message("op", {"x": torch.ones(16), "y": torch.ones(0)}, {"a": 1}))
    assert len(blob) <= SMALL.size
    assert decode(blob, SMALL).tensors.keys() == in_a_file(blob, SMALL).tensors.keys() == {"x", "y"}


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Message("op", {}, {"a": "x" * 101}), "header has"),
        (Message("op", {"x" * 500: torch.ones(0)}), "the index of its tensors has"),
        (Message("op", {name: torch.ones(0) for name in "abcd"}), "it has 4 tensors; at most 3 are allowed"),
    ],
)
def test_what_is_beyond_its_bounds_is_refused_before_it_is_parsed(
    message: Message, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob, bounds = encode(message), SMALL
    if "it has" in why:
        bounds = bounds._replace(index_size=10_000)
    monkeypatch.setattr("manyhands.messages.message.safetensors", None)
    monkeypatch.setattr("manyhands.messages.message.json.loads", None)
    with pytest.raises(MessageError, match=why):
        decode(blob, bounds)
    if "header" not in why:
        monkeypatch.undo()
        with pytest.raises(MessageError, match=why):
            in_a_file(blob, bounds)


@contextmanager
def counted_calls() -> Iterator[list[str]]:
    """The functions that Python calls: work that no clock and no coverage changes."""
    calls: list[str] = []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name) if event.endswith("call") else None)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def test_very_many_tensors_are_refused_at_once() -> None:
    index = b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(20_000)) + b"}"
    blob = framed(b'["op",{}]', struct.pack("<Q", len(index)) + index)
    for bounds in (SMALL, SMALL._replace(index_size=1 << 30)):
        with pytest.raises(MessageError, match="of its tensors has|it has 20,000 tensors"), counted_calls() as calls:
            decode(blob, bounds)
        assert 0 < len(calls) < 200


@given(messages)
def test_the_index_is_never_larger_than_its_layout_says(message: Message) -> None:
    blob = encode(message)
    at = head_size(blob)
    (length,) = struct.unpack_from("<Q", blob, at)
    assert length <= index_bytes(state_spec(message.tensors))
