"""Frames over FLARE's cells: of the peers of the job alone, whatever they send, and without an error that ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nvflare")

from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message as FlareMessage

from manyhands.errors import Reason, Refused
from manyhands.federation.kit import SERVER
from manyhands.federation.plans import SITE_PLAN
from manyhands.federation.server_connection import RunAborted, ServerConnection
from manyhands.federation.site_connections import IDLE_CALL_BOUNDS, ReceivedCall, SiteConnections
from manyhands.links.exchange import MAX_WAITING_FRAMES, SessionGone
from manyhands.links.flare_cell import CHANNEL, FIELDS, TOPIC, CellConnection
from manyhands.links.frame import Frame
from manyhands.messages.message import Message

ENDED, SERVER_CELL = Message("ended"), "server.job"
NESTED: Any = 0
for _ in range(5000):
    NESTED = [NESTED]
ODD = [None, 5, b"x", [], {}, NESTED, {"k": NESTED}, {"k": "part"}, {"k": "ask", "s": "s", "n": True, "i": 0},
       {"k": "ask", "s": "s", "n": 1, "i": 0, "x": NESTED}, {"k": "refuse", "s": "s" * 70_000, "n": 1}]  # fmt: skip


class Network:
    """FLARE's cells, in this process: what is sent arrives at once, and is lost where nobody listens."""

    def __init__(self) -> None:
        self.receivers: dict[str, Callable[..., Any]] = {}

    def cell(self, name: str) -> Any:
        def register(channel: str, topic: str, receive: Callable[..., Any]) -> None:
            assert (channel, topic) == (CHANNEL, TOPIC)
            self.receivers[name] = receive

        core = SimpleNamespace(register_request_cb=register, fire_and_forget=partial(self.send, name))
        return SimpleNamespace(core_cell=core)

    def send(
        self, origin: str, channel: str, topic: str, target: str, message: FlareMessage, optional: bool = False
    ) -> dict[str, str]:
        if target not in self.receivers:
            return {target: "there is no such cell"}
        message.set_header(MessageHeaderKey.ORIGIN, origin)
        self.receivers[target](message)
        return {target: ""}


class World:
    """A server, and the sites a and b of its job."""

    def __init__(self) -> None:
        self.network, self.lines, self.is_over = Network(), list[str](), False
        cells = {site: f"{site}.job" for site in "ab"}
        connect = partial(CellConnection, cell=self.network.cell(SERVER_CELL), peers=cells)
        self.server = SiteConnections(connect, cells, lambda peer, line: self.lines.append(f"{peer}: {line}"))
        self.sites = {
            site: ServerConnection(
                partial(CellConnection, cell=self.network.cell(cell), peers={SERVER: SERVER_CELL}),
                lambda: self.is_over,
            )
            for site, cell in cells.items()
        }

    def raw(self, origin: str, fields: Any, payload: Any = b"") -> None:
        self.network.send(origin, CHANNEL, TOPIC, SERVER_CELL, FlareMessage({FIELDS: fields}, payload))

    def received(self) -> list[ReceivedCall]:
        """The calls that are complete."""
        calls = []
        while not self.server._arrivals.empty():
            if call := self.server.next(0):
                calls.append(call)
        return calls

    def call(self, site: str, answer: Message | Refused | None, message: Message = ENDED) -> list[Message | Exception]:
        """What a site is answered; None ends its session."""
        answers: list[Message | Exception] = []

        def run() -> None:
            try:
                answers.append(self.sites[site](message))
            except (Refused, SessionGone, RunAborted) as error:
                answers.append(error)

        caller = threading.Thread(target=run, daemon=True)
        caller.start()
        while (call := self.server.next(20.0)) is None:
            pass
        assert (call.peer, call.message) == (site, message)
        if answer is None:
            self.server.forget([site])
        else:
            self.server.answer(site, answer)
        caller.join(20.0)
        return answers


@pytest.fixture
def world() -> World:
    return World()


def test_a_call_is_answered_or_refused(world: World) -> None:
    assert world.call("a", ENDED) == [ENDED]
    (refusal,) = world.call("b", Refused(Reason.NOT_NOW, "not yet"))
    assert isinstance(refusal, Refused)
    assert refusal.detail == "not yet"


def test_a_site_whose_session_was_ended_begins_a_new_one(world: World) -> None:
    assert isinstance(world.call("a", None)[0], SessionGone)
    world.sites["a"].new_session()
    assert world.call("a", ENDED) == [ENDED]


def test_no_frame_ends_a_server_and_whoever_sends_one_is_named(world: World) -> None:
    for fields in ODD:
        for payload in (b"", None, b"x" * 100, object()):
            world.raw("a.job", fields, payload)
            assert world.received() == []
    assert all(line.startswith("a: its frame was dropped: ") and len(line) < 200 for line in world.lines)
    assert len(world.lines) >= len(ODD)
    for site in "ab":
        assert world.call(site, ENDED) == [ENDED]


@pytest.mark.parametrize("origin", ["c.job", "a", "a.another-job", "server", "", None])
def test_a_cell_that_is_none_of_the_job_is_not_heard(world: World, origin: Any) -> None:
    world.raw(origin, {"k": "ask", "s": "s", "n": 1, "i": 0})
    assert world.server._arrivals.empty()


def test_a_site_hears_its_server_alone(world: World) -> None:
    for origin, heard in (("b.job", 0), ("server", 0), (SERVER_CELL, 1)):
        frame = FlareMessage({FIELDS: {"k": "gone", "s": "s", "n": 1}}, b"")
        world.network.send(origin, CHANNEL, TOPIC, "a.job", frame)
        assert world.sites["a"]._frames.qsize() == heard


def test_what_is_sent_to_a_cell_that_is_not_there_is_lost_and_no_error(world: World) -> None:
    del world.network.receivers["b.job"]
    connection = world.server._connection
    frame = Frame({"k": "wait", "s": "s", "n": 1})
    connection.send("b", [frame])
    assert world.call("a", ENDED) == [ENDED]


@pytest.mark.parametrize("floods", ["server", "site"])
def test_whoever_floods_fills_no_memory_and_is_heard_again(world: World, floods: str) -> None:
    site = world.sites["a"]
    for number in range(1000):
        if floods == "server":
            site._take(SERVER, Frame({"k": "gone", "s": "another", "n": number}))
        else:
            world.raw("a.job", {"k": "ask", "s": "another", "n": number, "i": 0})
    assert site._frames.qsize() <= MAX_WAITING_FRAMES
    assert world.server._arrivals.qsize() <= MAX_WAITING_FRAMES + 1
    world.received()
    assert world.call("a", ENDED) == [ENDED]


def test_who_is_muted_is_not_heard(world: World) -> None:
    world.server.muted = frozenset("a")
    world.raw("a.job", {"k": "ask", "s": "s", "n": 1, "i": 0})
    assert world.received() == []
    assert world.server.spent == {}
    world.server.muted = frozenset()
    assert world.call("a", ENDED) == [ENDED]


def test_a_call_ends_when_flare_ends_the_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manyhands.federation.server_connection.SILENCE_SECONDS", 0.001)
    site = world.sites["a"]
    site.check()
    world.is_over = True
    with pytest.raises(RunAborted):
        site.check()
    calls = threading.Thread(target=partial(expect_abort, site), daemon=True)
    calls.start()
    calls.join(5.0)
    assert not calls.is_alive()


def expect_abort(site: ServerConnection) -> None:
    with pytest.raises(RunAborted):
        site(ENDED)


def test_a_site_that_the_job_does_not_have_is_neither_allowed_nor_told_anything(world: World) -> None:
    """A run that goes on may have begun with more sites than its new job has."""
    more = SITE_PLAN.bounds("up")._replace(size=1 << 20)
    world.server.allow(["a", "gone"], more)
    assert world.server._sessions["a"].bounds.size == 1 << 20
    assert world.server._sessions["b"].bounds == IDLE_CALL_BOUNDS
    world.server.forget(["a", "gone"])
    world.server.allow()
    assert world.server._sessions["a"].bounds == IDLE_CALL_BOUNDS
