"""A run and what its sites may say to its server, without a network: nobody ends what others do."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import pytest
import torch

from manyhands.errors import MessageError, Reason, Refused
from manyhands.federation import plans
from manyhands.federation.enrolment import Enrolment
from manyhands.federation.log import MAX_LINES_PER_PEER
from manyhands.federation.run_session import RunSession
from manyhands.federation.server import FederationServer
from manyhands.federation.site_connections import ReceivedCall
from manyhands.files.strict_json import finite_json
from manyhands.messages.message import Bounds, Message
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.round import Round
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.shipped import recipe_path

LONG = "x" * 70_000
NESTED: Any = []
for _ in range(5000):
    NESTED = [NESTED]
SMALL = [
    "data.limit=60",
    "method.rounds=3",
    "method.training.steps=1",
    "method.model.widths=[8]",
    "federation.gather=100",
]


class FakeConnections:
    """Stands in for ``SiteConnections``."""

    def __init__(self) -> None:
        self.muted: frozenset[str] = frozenset()
        self.spent: dict[str, float] = defaultdict(float)
        self.allowed: tuple[set[str], Bounds | None] = set(), None
        self.forgotten: list[str] = []
        self.came: deque[ReceivedCall] = deque()
        self.said: dict[str, Message | Refused] = {}

    def next(self, timeout: float) -> ReceivedCall | None:
        return self.came.popleft() if self.came else None

    def answer(self, peer: str, answer: Message | Refused) -> None:
        self.said[peer] = answer

    def forget(self, peers: Any) -> None:
        self.forgotten += peers

    def allow(self, peers: Any = (), bounds: Bounds | None = None) -> None:
        self.allowed = set(peers), bounds


class World:
    """A server with a run for two sites; a third one, which was not asked, can call it, too."""

    def __init__(self, path: Path, *changes: str) -> None:
        self.connections, self.lines = FakeConnections(), list[str]()
        connections: Any = self.connections
        recipe, folder = load_recipe(recipe_path("digits-fedavg"), [*SMALL, *changes]), RunFolder(path / "run")
        with folder.open(recipe.resolved(), resume=False):
            pass
        self.session = RunSession(folder, recipe, Enrolment(("a", "b")), torch.device("cpu"), since=0.0)
        self.session.since = float("inf")  # it waits for both, however slow this machine is
        self.rounds = list[Round]()
        self.server = FederationServer(self.session, connections, self.lines.append, on_round=self.rounds.append)

    def call(self, peer: str, op: str, tensors: Any = None, **facts: Any) -> Message | Refused | None:
        """What is answered at once."""
        self.connections.said.clear()
        self.connections.came.append(ReceivedCall(peer, f"session of {peer}", 1, Message(op, tensors or {}, facts)))
        self.server.step()
        return self.connections.said.get(peer)

    def enrol(self, site: str, **changed: Any) -> Message | Refused | None:
        facts = {"recipe": self.session.recipe_hash, "images": 10, "held_out": 0, "kept": []}
        return self.call(site, "enrol", **facts | changed)

    @property
    def stage(self) -> str:
        self.server.step()
        return str(self.server.status()["run"]["stage"])


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def training(world: World) -> World:
    for site in ("a", "b"):
        world.enrol(site)
    assert world.stage == "training"
    return world


@pytest.mark.parametrize(
    ("op", "facts"),
    [
        ("enrol", {"images": 10, "held_out": 0, "kept": []}),
        ("decline", {"why": "no", "waits": False}),
        ("ended", {}),
    ],
)
def test_who_was_not_asked_is_not_heard(world: World, op: str, facts: dict[str, Any]) -> None:
    world.enrol("a")
    refusal = world.call("c", op, **({"recipe": world.session.recipe_hash} if op == "enrol" else {}) | facts)
    assert isinstance(refusal, Refused)
    assert refusal.reason is Reason.UNKNOWN_SILO
    assert world.stage == "gathering"
    assert world.session.sites.enrolled == {"a"}
    assert world.server.status()["sites"] == {"a": "ready", "b": "awaited"}


@pytest.mark.parametrize(
    ("op", "tensors", "facts"),
    [
        ("ended", {}, {"run": LONG}),
        ("update", {LONG: torch.ones(1)}, {}),
        ("x" * 32, {}, {}),
        ("update", {"x": torch.ones(3)}, {"round": 10**400}),
        ("update", {}, {"round": 0, "images": 10, "loss": 1.0, "seen": 10**400, "flops": 0, "withheld": ""}),
        ("enrol", {}, {"recipe": LONG}),
        ("enrol", {}, {"recipe": "0" * 64}),
        ("enrol", {}, {"images": 10**30}),
        ("enrol", {}, {"held_out": -1}),
        ("enrol", {}, {"kept": ["x"]}),
        ("enrol", {}, {"kept": [True]}),
        ("enrol", {}, {"kept": NESTED}),
        ("update", {}, {"round": NESTED}),
        ("decline", {}, {"why": "x", "waits": {"a": NESTED}}),
    ],
)
def test_no_site_ends_the_run_of_the_others(training: World, op: str, tensors: Any, facts: dict[str, Any]) -> None:
    refusal = training.enrol("a", **facts) if op == "enrol" else training.call("a", op, tensors, **facts)
    assert isinstance(refusal, Refused)
    assert len(refusal.detail) <= 1000
    assert training.stage == "training"


def test_a_site_with_another_recipe_is_refused_and_may_still_come_with_this_one(world: World) -> None:
    refusal = world.enrol("a", recipe="0" * 64)
    assert isinstance(refusal, Refused)
    assert "it has another recipe" in refusal.detail
    assert world.session.sites.enrolled == set()
    world.enrol("a")
    assert world.session.sites.enrolled == {"a"}


def test_what_a_site_says_is_told_on_short_and_plain(training: World) -> None:
    refusal = training.call("a", "decline", why="é" * 1001, waits=False)
    assert isinstance(refusal, Refused)
    training.call("a", "decline", why="\x1b[2J\ud800" + "é" * 990, waits=False)
    status = training.server.status()
    assert status["sites"]["a"].startswith("does not take part: ?[2J?éé")
    assert len(finite_json(status)) < 20_000
    assert all(line.isprintable() for line in training.lines)


def test_the_status_says_where_each_site_is_and_when_it_came_back(training: World) -> None:
    assert training.server.status()["sites"] == {"a": "trains", "b": "trains"}
    training.enrol("a")
    states = training.server.status()["sites"]
    assert states["a"].startswith("trains; came back at ")
    assert states["b"] == "trains"
    assert "a: came back" in training.lines
    assert json.loads(finite_json(training.server.status()))["run"]["hash"] == training.session.recipe_hash


def test_unknown_operations_have_one_line_in_the_ledger(training: World) -> None:
    for i in range(5):
        training.call("a", f"odd-{i}")
    assert {entry["op"] for entry in training.session.ledger.entries()} == {"refused"}


def test_a_site_that_begins_again_while_the_others_gather_is_counted_once_it_has_enrolled_again(world: World) -> None:
    world.enrol("a")
    assert isinstance(world.enrol("a", images=10**30), Refused)
    assert world.session.sites.enrolled == {"a"}, "what is not allowed is not looked at"
    assert isinstance(world.enrol("a", recipe="0" * 64), Refused)
    world.enrol("b")
    assert world.session.sites.enrolled == {"b"}
    world.enrol("a")
    assert world.stage == "training"


def test_a_site_that_waits_for_an_approval_is_waited_for_and_trains_once_it_enrols(world: World) -> None:
    world.enrol("a")
    assert isinstance(world.call("b", "decline", why="is not approved here", waits=True), Message)
    assert world.stage == "gathering"
    assert world.server.status()["sites"] == {"a": "ready", "b": "waits: is not approved here"}
    world.enrol("b")
    assert world.stage == "training"
    assert world.server.status()["sites"] == {"a": "trains", "b": "trains"}


def test_no_more_may_be_said_than_the_stage_of_the_run_needs(world: World) -> None:
    connections, basic = world.connections, plans.SITE_PLAN.bounds("up")
    assert connections.allowed == (set(), None)
    assert basic.size < 20_000
    for site in ("a", "b"):
        world.enrol(site)
    sites, bounds = connections.allowed
    assert sites == {"a", "b"}
    assert bounds is not None
    assert bounds == world.session.plan.bounds("up")
    world.server.end_run("stopped", "by the admin")
    assert connections.allowed == (set(), None)


def test_a_round_that_was_closed_is_said_once_to_people_and_to_trackers(
    training: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"rounds": 3, "seconds": 1.0, "images_seen": 9, "bytes_up": 1, "bytes_down": 2, "losses": {"a": 0.5}}
    closed = [Round(number=0, missing={"b": "was late"}, **figures)]  # type: ignore[arg-type]
    monkeypatch.setattr(training.session, "closed", lambda: [closed.pop()] if closed else [])
    for _ in range(3):
        training.server.step()
    assert [done.number for done in training.rounds] == [0]
    (line,) = [line for line in training.lines if line.startswith("round 1/3")]
    assert line.endswith("b is missing: was late")


def test_who_calls_after_the_end_is_refused_and_its_session_was_ended(training: World) -> None:
    training.server.end_run("stopped", "FLARE ended the job")
    assert training.connections.forgotten == ["a", "b"]
    refusal = training.enrol("a")
    assert isinstance(refusal, Refused)
    assert "the run is over: stopped FLARE ended the job" in refusal.detail
    assert isinstance(training.call("a", "update"), Refused)
    assert training.stage == "stopped"


def test_a_failure_of_the_run_is_its_end_and_not_that_of_its_server(
    training: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training.session, "closed", full)
    training.server.step()
    assert training.stage == "failed"
    assert "No space left on device" in training.server.status()["run"]["why"]
    assert isinstance(training.enrol("b"), Refused)


@pytest.mark.parametrize(
    "error", [MessageError("its facts take 2,000,000 bytes"), RecursionError(), OSError(28, "full")]
)
def test_an_answer_that_cannot_be_told_is_a_refusal_to_one_site_and_no_more(world: World, error: Exception) -> None:
    answer = world.connections.answer

    def broken(peer: str, message: Message | Refused) -> None:
        if isinstance(message, Message) and peer == "a":
            raise error
        answer(peer, message)

    world.connections.answer = broken  # type: ignore[method-assign]
    refusal = world.call("a", "decline", why="no", waits=True)
    assert isinstance(refusal, Refused)
    assert refusal.reason is Reason.NOT_NOW
    assert isinstance(world.call("b", "decline", why="no", waits=True), Message)
    assert any(line.startswith("a: the answer cannot be sent") for line in world.lines)
    assert world.stage == "gathering"


def test_a_flood_of_refusals_leaves_a_few_lines(training: World) -> None:
    for _ in range(500):
        training.call("a", "odd")
    assert sum(line.startswith("a: refused") for line in training.lines) == MAX_LINES_PER_PEER
