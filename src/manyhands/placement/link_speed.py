"""How fast a link is, measured by real messages to a peer who answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch

from manyhands.errors import ManyhandsError, MessageError, RecipeError, Refused
from manyhands.links.stream import Stream, receive, send
from manyhands.messages.facts import Whole
from manyhands.messages.message import Message
from manyhands.messages.operation import Operation, Payload
from manyhands.messages.plan import Plan
from manyhands.tensors import TensorSpec

MAX_TEST_BYTES = 1 << 23
"""The most numbers of a message that measures a link."""
ROUND_TRIPS, TRANSFERS, TRANSFER = 10, 3, 0.3
"""Small messages, large ones, and the least seconds of a large one, unless it is ``MAX_TEST_BYTES`` already."""
PATIENCE = 60.0
"""The most seconds of one message."""
FLOATS = TensorSpec((None,), torch.float32, MAX_TEST_BYTES)
PLAN = Plan({"link": Operation(
    "sends zeros, gets as many as it asks for", "while a link is measured",
    Payload({"x": FLOATS}, {"answer": Whole(0, MAX_TEST_BYTES)}), Payload({"x": FLOATS}),
)})  # fmt: skip


class Link(NamedTuple):
    """Bytes a second towards the peer and back, if that is known, and the seconds of a message without a weight.

    To write, to check and to read a message is a part of sending it.
    """

    rate: float
    down: float | None = None
    latency: float = 0.0


def measure_link(stream: Stream) -> Link:
    """What a peer who ``answer``s can be sent, and sends."""
    latency = median(_exchange(stream, 0, 0) for _ in range(ROUND_TRIPS)) / 2

    def rate(ways: tuple[int, int]) -> float:
        count = 1 << 14
        while (
            taken := _exchange(stream, *(way * count for way in ways))
        ) - 2 * latency < TRANSFER and count < MAX_TEST_BYTES:
            count *= 2
        all_taken = [taken, *(_exchange(stream, *(way * count for way in ways)) for _ in range(TRANSFERS - 1))]
        return 4 * count / max(median(all_taken) - 2 * latency, 1e-9)

    return Link(rate((1, 0)), rate((0, 1)), latency)


def _exchange(stream: Stream, up: int, down: int) -> float:
    """The seconds of a message of so many numbers, and of an answer of so many."""
    message, began = Message("link", {"x": torch.zeros(()).expand(up)}, {"answer": down}), perf_counter()
    send(stream, message)
    reply = receive(stream, _bytes(down), PATIENCE)
    if reply is None:
        raise MessageError("the peer has gone")
    PLAN.check(reply, "down")
    return perf_counter() - began


def answer(stream: Stream, seconds: float) -> int:
    """Answer one who measures the link, until that one goes, or for so many seconds; how often."""
    count, deadline = 0, time.monotonic() + seconds
    while message := receive(stream, _bytes(MAX_TEST_BYTES), min(PATIENCE, deadline - time.monotonic())):
        PLAN.check(message, "up")
        if not 0 <= message.facts["answer"] <= MAX_TEST_BYTES:
            raise MessageError(f"asks for {message.facts['answer']:,} numbers, {MAX_TEST_BYTES:,} are the most")
        send(stream, Message("link", {"x": torch.zeros(()).expand(message.facts["answer"])}))
        count += 1
    return count


def answer_one(host: str, port: int, seconds: float, say: Callable[[str], None]) -> None:
    """Answer one peer who measures the link, for at most so many seconds; who talks of something else is sent away."""
    deadline = time.monotonic() + seconds
    with _listening(host, port) as listener:
        say(f"waiting at {host}:{listener.getsockname()[1]} for one who measures the link, at most {seconds:g} s")
        while (left := deadline - time.monotonic()) > 0:
            listener.settimeout(left)
            try:
                peer, place = listener.accept()
            except TimeoutError:
                break
            with peer:
                try:
                    if count := answer(peer, left):
                        say(f"answered {place[0]} {count} times")
                        return
                except (MessageError, Refused, OSError) as error:
                    say(f"sent {place[0]} away: {error}")
    raise ManyhandsError(f"{host}:{port}: nobody measured the link within {seconds:g} s")


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise RecipeError(f"{host}:{port}: cannot be listened at: {error}") from None


def link_to(host: str, port: int) -> Link:
    """The link to a peer who answers there."""
    try:
        with socket.create_connection((host, port), timeout=PATIENCE) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return measure_link(peer)
    except (OSError, MessageError, Refused) as error:
        raise RecipeError(f"{host}:{port}: answers nobody who measures the link: {error}") from None


def address(text: str, option: str) -> tuple[str, int]:
    """Host and port; a port alone is on this machine."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise RecipeError(f"{option} {text}: is not HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def _bytes(numbers: int) -> int:
    """The most bytes of a message with so many numbers."""
    return 4 * numbers + 4096
