"""A link is measured for what it is, and strangers on it are disconnected."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch

from manyhands.errors import ManyhandsError, MessageError, RecipeError, Refused
from manyhands.links.stream import receive, send
from manyhands.messages.message import Message, encode
from manyhands.placement import link_speed
from manyhands.placement.link_speed import Link, address, answer, answer_one, link_to, measure_link


class Wire:
    """A peer who answers over a link of known rates, on a clock of its own."""

    def __init__(self, link: Link) -> None:
        self.link, self.now, self.left = link, 0.0, memoryview(b"")
        self.near, self.far = socket.socketpair()
        self.far.settimeout(5)
        self.peer = threading.Thread(target=answer, args=(self.far, 60), daemon=True)
        self.peer.start()

    def sendall(self, data: bytes | memoryview, /) -> None:
        self.now += self.link.latency + len(data) / self.link.rate
        self.near.sendall(data)

    def recv_into(self, buffer: memoryview, /) -> int:
        got = self.near.recv_into(buffer)
        self.now += got / (self.link.down or 1) + self.link.latency * (len(buffer) == 4)
        return got

    def settimeout(self, value: float | None, /) -> None:
        self.near.settimeout(5)

    def close(self) -> None:
        self.near.close()
        self.peer.join()
        self.far.close()


@pytest.mark.parametrize("link", [Link(1e6, 4e6, 0.02), Link(3e6, 2e5, 0.0001)])
def test_a_link_is_what_is_measured_of_it(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(link)
    monkeypatch.setattr(link_speed, "perf_counter", lambda: wire.now)
    measured = measure_link(wire)
    wire.close()
    assert measured.rate == pytest.approx(link.rate, rel=0.02)
    assert measured.down == pytest.approx(link.down, rel=0.02)
    assert measured.latency == pytest.approx(link.latency, abs=200 / link.rate + 200 / (link.down or 1))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def test_what_is_sent_is_received_and_then_the_stream_ends(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    sent = Message("fake-backward", {"x": torch.arange(5.0)}, {"a": 1})
    assert send(near, sent) == 4 + len(encode(sent))
    near.close()
    got = receive(far, 1 << 20, 5)
    assert got is not None
    assert (got.op, got.facts, got.tensors["x"].tolist()) == ("fake-backward", {"a": 1}, [0, 1, 2, 3, 4])
    assert receive(far, 1 << 20, 5) is None


BLOB = encode(Message("link", {"x": torch.zeros(8)}, {"answer": 1}))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("<I", 1 << 31), "2,147,483,648 bytes was announced"),
        (struct.pack("<I", len(BLOB)) + BLOB[:-1], "ended after"),
        (struct.pack("<I", len(BLOB)), "ended before"),
        (b"\x01\x00", "ended after 2 of 4"),
        (struct.pack("<I", 9) + b"GET / HTT", "starts with"),
        (struct.pack("<I", 0), "too few"),
    ],
)
def test_bytes_that_are_no_message_are_refused(
    data: bytes, words: str, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    near.sendall(data)
    near.close()
    with pytest.raises(MessageError, match=words):
        receive(far, 1 << 20, 5)


def test_who_says_nothing_is_not_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(MessageError, match="0 of 4 bytes arrived in time"):
        receive(pair[1], 100, 0.001)


@pytest.mark.parametrize(
    ("facts", "tensors"),
    [
        ({"answer": -1}, {"x": torch.zeros(1)}),
        ({"answer": 1 << 40}, {"x": torch.zeros(1)}),
        ({"answer": 1.5}, {"x": torch.zeros(1)}),
        ({}, {"x": torch.zeros(1)}),
        ({"answer": 1}, {"x": torch.zeros(2, 2)}),
        ({"answer": 1}, {"x": torch.full((1,), torch.nan)}),
        ({"answer": 1}, {}),
    ],
)
def test_one_who_asks_for_something_else_is_refused(
    facts: dict[str, Any], tensors: dict[str, Any], pair: tuple[socket.socket, socket.socket]
) -> None:
    send(pair[0], Message("link", tensors, facts))
    with pytest.raises((Refused, MessageError)):
        answer(pair[1], 5)


def test_a_stranger_is_sent_away_and_the_peer_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_speed, "TRANSFER", 0.001)
    said: list[str] = []
    ready = threading.Event()

    def say(words: str) -> None:
        said.append(words)
        ready.set()

    serving = threading.Thread(target=answer_one, args=("127.0.0.1", 0, 30, say))
    serving.start()
    ready.wait(10)
    port = int(said[0].split(":")[1].split()[0])
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with suppress(ConnectionResetError):
            stranger.recv(1)  # until it is hung up on
    measured = link_to("127.0.0.1", port)
    serving.join(10)
    assert min(measured.rate, measured.down or 0, measured.latency) > 0
    assert "disconnected 127.0.0.1" in said[1]
    assert "answered 127.0.0.1" in said[2]
    with pytest.raises(RecipeError, match="cannot measure the link"):
        link_to("127.0.0.1", port)


def test_nobody_came() -> None:
    with pytest.raises(ManyhandsError, match="nobody measured the link"):
        answer_one("127.0.0.1", 0, 0.001, lambda words: None)


@pytest.mark.parametrize("text", ["host", "host:", ":x", "host:70000", ""])
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(RecipeError, match="is not HOST:PORT"):
        address(text, "--peer")
    assert address("7000", "--serve") == ("127.0.0.1", 7000)
    assert address("[::1]:7000", "--peer") == ("::1", 7000)
