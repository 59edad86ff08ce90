"""Frames that FLARE's own line delivers, of a peer that has a certificate and sends what it likes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("nvflare")

import msgpack
from nvflare.fuel.f3.message import Message as Carried
from nvflare.fuel.f3.sfm.sfm_conn import SfmConnection

from manyhands.federation.demo import LOOPBACK, free_port
from manyhands.federation.kit import SERVER, load_kit, new_kits
from manyhands.federation.server_connection import ServerConnection
from manyhands.federation.site_connections import SiteConnections
from manyhands.links.exchange import MAX_WAITING_FRAMES
from manyhands.links.flare import APP
from manyhands.links.frame import Frame
from manyhands.messages.message import Message

RAW = {
    "1,000 deep": b"\x81\xa1k" + b"\x91" * 1000 + b"\x00",
    "10,000 deep": b"\x81\xa1k" + b"\x91" * 10_000 + b"\x00",
    "deep beside what is right": msgpack.packb({"k": "ask", "s": "s", "n": 1, "i": 0, "x": 0})[:-1]
    + b"\x91" * 1000 + b"\x00",
    "no text": b"\x81\xa1k\xa1\xff",
    "a list": b"\x91\x00",
    "cut short": b"\x85\xa1k",
    "nothing": b"",
}  # fmt: skip


@pytest.fixture(scope="module")
def connected(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[SiteConnections, ServerConnection, list[str]]]:
    out, port, lines = tmp_path_factory.mktemp("kits") / "kits", free_port(), list[str]()
    new_kits(f"{LOOPBACK}:{port}", ["a"], out)
    kit = load_kit(out / SERVER, "server")
    connections = SiteConnections(
        kit.connect(LOOPBACK, port), ["a"], lambda peer, line: lines.append(f"{peer}: {line}")
    )
    is_connected = threading.Event()
    calls = ServerConnection(load_kit(out / "a", "site").connect(), lambda _: is_connected.set())
    assert is_connected.wait(30)
    yield connections, calls, lines
    calls.close()
    connections.close()


def until(connections: SiteConnections, done: Any) -> Any:
    """Wait for a result while the server listens."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        call = connections.next(0.05)
        if result := done(call):
            return result
    return None


def test_no_frame_ends_a_server_and_whoever_sends_one_is_named(
    connected: tuple[SiteConnections, ServerConnection, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    connections, calls, lines = connected
    packed = staticmethod(lambda headers: headers if isinstance(headers, bytes) else msgpack.packb(headers))
    monkeypatch.setattr(SfmConnection, "headers_to_bytes", packed)
    communicator = calls._connection._communicator
    for raw in RAW.values():
        communicator.send(communicator.find_endpoint(SERVER), APP, Carried(raw, b"x"))
    assert until(connections, lambda _: len(lines) >= 2 and lines)
    assert all(each.startswith("a: its frame was dropped: ") and len(each) < 200 for each in lines)
    answers: list[Message] = []
    caller = threading.Thread(target=lambda: answers.append(calls(Message("hello", facts={"declined": ""}))))
    caller.start()
    call = until(connections, lambda call: call)
    assert call.message == Message("hello", {}, {"declined": ""})
    connections.answer("a", Message("hello", facts={"run": "", "recipe": ""}))
    caller.join(20)
    assert [each.op for each in answers] == ["hello"]


def test_a_server_that_floods_fills_no_memory_and_is_heard_again(
    connected: tuple[SiteConnections, ServerConnection, list[str]],
) -> None:
    connections, calls, _ = connected
    for number in range(1000):
        calls._take(SERVER, Frame({"k": "gone", "s": "another", "n": number}))
    assert calls._frames.qsize() <= MAX_WAITING_FRAMES
    answers: list[Message] = []
    caller = threading.Thread(target=lambda: answers.append(calls(Message("hello", facts={"declined": ""}))))
    caller.start()
    assert until(connections, lambda call: call)
    connections.answer("a", Message("hello", facts={"run": "", "recipe": ""}))
    caller.join(20)
    assert [each.op for each in answers] == ["hello"]
