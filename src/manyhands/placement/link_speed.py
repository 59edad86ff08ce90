"""Measures how fast a link is, with real messages to a peer that answers."""

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
from manyhands.messages.outgoing import Statistics
from manyhands.messages.plan import Plan
from manyhands.tensors import TensorSpec

MAX_TEST_BYTES = 1 << 23
"""The most values of a message that measures a link."""
ROUND_TRIPS, TRANSFERS, TRANSFER = 10, 3, 0.3
"""The number of small messages and of large ones, and the least seconds of a large one below ``MAX_TEST_BYTES``."""
TIMEOUT = 60.0
"""The most seconds of one message."""
FLOATS = TensorSpec((None,), torch.float32, MAX_TEST_BYTES)
PLAN = Plan({"link": Operation(
    "sends zeros, gets as many as it asks for", "while a link is measured",
    Payload({"x": FLOATS}, {"answer": Whole(0, MAX_TEST_BYTES)}), Payload({"x": FLOATS}),
    outgoing=(Statistics(of=("zeros",)),),
)})  # fmt: skip


class Link(NamedTuple):
    """The speed of a link, which includes writing, checking and reading a message.

    Args:
        rate: The bytes per second to the peer.
        down: The bytes per second from the peer; None if unknown.
        latency: The seconds of an empty message.
    """

    rate: float
    down: float | None = None
    latency: float = 0.0


def measure_link(stream: Stream) -> Link:
    """Measure the link to a peer that runs ``answer``."""
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
    """Return the seconds of a message with ``up`` values and an answer with ``down`` values."""
    message, began = Message("link", {"x": torch.zeros(()).expand(up)}, {"answer": down}), perf_counter()
    send(stream, message)
    reply = receive(stream, _bytes(down), TIMEOUT)
    if reply is None:
        raise MessageError("the peer has disconnected")
    PLAN.check(reply, "down")
    return perf_counter() - began


def answer(stream: Stream, seconds: float) -> int:
    """Answer a peer that measures the link until it disconnects or time is up; return the number of answers."""
    count, deadline = 0, time.monotonic() + seconds
    while message := receive(stream, _bytes(MAX_TEST_BYTES), min(TIMEOUT, deadline - time.monotonic())):
        PLAN.check(message, "up")
        if not 0 <= message.facts["answer"] <= MAX_TEST_BYTES:
            raise MessageError(f"asks for {message.facts['answer']:,} values, but {MAX_TEST_BYTES:,} are the most")
        send(stream, Message("link", {"x": torch.zeros(()).expand(message.facts["answer"])}))
        count += 1
    return count


def answer_one(host: str, port: int, seconds: float, say: Callable[[str], None]) -> None:
    """Wait for one peer that measures the link, and answer it. Peers that send anything else are disconnected.

    Args:
        host: The address to listen at.
        port: The port; 0 for any free one.
        seconds: The most seconds to wait.
        say: Prints a line of progress.
    """
    deadline = time.monotonic() + seconds
    with _listening(host, port) as listener:
        say(f"waiting at {host}:{listener.getsockname()[1]} for a peer that measures the link, at most {seconds:g} s")
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
                    say(f"disconnected {place[0]}: {error}")
    raise ManyhandsError(f"{host}:{port}: nobody measured the link within {seconds:g} s")


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise RecipeError(f"{host}:{port}: cannot listen: {error}") from None


def link_to(host: str, port: int) -> Link:
    """Measure the link to a peer that waits at this address."""
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return measure_link(peer)
    except (OSError, MessageError, Refused) as error:
        raise RecipeError(f"{host}:{port}: cannot measure the link: {error}") from None


def address(text: str, option: str) -> tuple[str, int]:
    """Parse HOST:PORT; a port alone is on this machine."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise RecipeError(f"{option} {text}: is not HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def _bytes(numbers: int) -> int:
    """Return the most bytes of a message with this many values."""
    return 4 * numbers + 4096
