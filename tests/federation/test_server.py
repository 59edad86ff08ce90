"""A server and what its sites and its admin may say to it, without a network: nobody ends what others do."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import pytest
import torch

from manyhands.errors import MessageError, Reason, Refused
from manyhands.federation import plans
from manyhands.federation.kit import ADMIN
from manyhands.federation.log import MAX_LINES_PER_PEER
from manyhands.federation.server import FederationServer
from manyhands.federation.site_connections import ReceivedCall
from manyhands.messages.message import Bounds, Message
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.shipped import recipe_path

SITES = ("a", "b", "c")
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
        self.connected: set[str] = set()
        self.muted: frozenset[str] = frozenset()
        self.spent: dict[str, float] = defaultdict(float)
        self.allowed: tuple[set[str], Bounds | None] = set(), None
        self.came: deque[ReceivedCall] = deque()
        self.said: dict[str, Message | Refused] = {}

    def next(self, timeout: float) -> ReceivedCall | None:
        return self.came.popleft() if self.came else None

    def answer(self, peer: str, answer: Message | Refused) -> None:
        self.said[peer] = answer

    def forget(self, peers: Any) -> None:
        pass

    def allow(self, peers: Any = (), bounds: Bounds | None = None) -> None:
        self.allowed = set(peers), bounds


class World:
    """A server with a run for two of three sites, which are enrolled."""

    def __init__(self, path: Path) -> None:
        self.connections, self.lines = FakeConnections(), list[str]()
        connections: Any = self.connections
        self.server = FederationServer(SITES, connections, out=path, device="cpu", log=self.lines.append)
        recipe = load_recipe(recipe_path("digits-fedavg"), SMALL)
        answer = self.call(ADMIN, "submit", recipe=recipe.resolved(), sites=["a", "b"])
        assert isinstance(answer, Message)
        self.run = answer.facts["run"]

    def call(self, peer: str, op: str, tensors: Any = None, **facts: Any) -> Message | Refused | None:
        """What is answered at once."""
        self.connections.said.clear()
        self.connections.came.append(ReceivedCall(peer, f"session of {peer}", 1, Message(op, tensors or {}, facts)))
        self.server.step()
        return self.connections.said.get(peer)

    def enrol(self, site: str) -> Message | Refused | None:
        return self.call(site, "enrol", run=self.run, images=10, held_out=0, kept=[])

    @property
    def stage(self) -> str:
        answer = self.call(ADMIN, "status")
        assert isinstance(answer, Message)
        return str(answer.facts["run"]["stage"])


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
    refusal = world.call("c", op, run=world.run, **facts)
    assert isinstance(refusal, Refused)
    assert refusal.reason is Reason.UNKNOWN_SILO
    assert world.stage == "gathering"
    assert world.server.run_session is not None
    assert world.server.run_session.sites.enrolled == {"a"}


@pytest.mark.parametrize(
    ("op", "tensors", "facts"),
    [
        ("ended", {}, {"run": LONG}),
        ("update", {LONG: torch.ones(1)}, {}),
        ("x" * 32, {}, {}),
        ("update", {"x": torch.ones(3)}, {"round": 10**400}),
        ("update", {}, {"round": 0, "images": 10, "loss": 1.0, "seen": 10**400, "flops": 0, "withheld": ""}),
        ("enrol", {}, {"images": 10**30, "held_out": 0, "kept": []}),
        ("enrol", {}, {"images": 10, "held_out": -1, "kept": []}),
        ("enrol", {}, {"images": 10, "held_out": 0, "kept": ["x"]}),
        ("enrol", {}, {"images": 10, "held_out": 0, "kept": [True]}),
        ("enrol", {}, {"images": 10, "held_out": 0, "kept": NESTED}),
        ("update", {}, {"round": NESTED}),
        ("decline", {}, {"why": "x", "waits": {"a": NESTED}}),
    ],
)
def test_no_site_ends_the_run_of_the_others(training: World, op: str, tensors: Any, facts: dict[str, Any]) -> None:
    refusal = training.call("a", op, tensors, **({"run": training.run} if op == "enrol" else {}) | facts)
    assert isinstance(refusal, Refused)
    assert len(refusal.detail) <= 1000
    assert training.stage == "training"


def test_what_a_site_says_is_told_on_short_and_plain(training: World) -> None:
    refusal = training.call("a", "decline", run=training.run, why="é" * 1001, waits=False)
    assert isinstance(refusal, Refused)
    training.call("a", "decline", run=training.run, why="\x1b[2J\ud800" + "é" * 990, waits=False)
    answer = training.call(ADMIN, "status")
    assert isinstance(answer, Message)
    assert answer.facts["sites"]["a"].startswith("not connected, does not take part: ?[2J?éé")
    assert len(json.dumps(dict(answer.facts))) < 20_000
    assert all(line.isprintable() for line in training.lines)


def test_unknown_operations_have_one_line_in_the_ledger(training: World) -> None:
    for i in range(5):
        training.call("a", f"odd-{i}")
    assert training.server.run_session is not None
    assert {entry["op"] for entry in training.server.run_session.ledger.entries()} == {"refused"}


def test_what_the_lead_asks_for_in_vain_ends_nothing(training: World, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "federation.json").write_text("{")
    for op, facts in {"files": {"run": "old"}, "stop": {"run": "old"}, "submit": {"recipe": {}, "sites": []}}.items():
        assert isinstance(training.call(ADMIN, op, **facts), Refused)
    assert training.stage == "training"


def test_a_site_that_asks_for_runs_anew_is_not_counted_until_it_enrols_again(world: World) -> None:
    world.enrol("a")
    world.call("a", "hello", declined="")
    world.enrol("b")
    assert world.server.run_session is not None
    assert world.server.run_session.sites.enrolled == {"b"}
    world.enrol("a")
    assert world.stage == "training"


def test_no_more_may_be_said_than_the_stage_of_the_run_needs(world: World) -> None:
    connections, basic = world.connections, plans.SITE_PLAN.bounds("up")
    assert connections.allowed == (set(), None)
    assert basic.size < 20_000
    for site in ("a", "b"):
        world.enrol(site)
    sites, bounds = connections.allowed
    assert sites == {"a", "b"}
    assert bounds is not None
    assert world.server.run_session is not None
    assert bounds == world.server.run_session.plan.bounds("up")
    world.call(ADMIN, "stop", run="")
    assert connections.allowed == (set(), None)


def test_a_recipe_that_cannot_be_offered_is_refused_when_it_is_submitted(tmp_path: Path) -> None:
    world = World(tmp_path / "one")
    world.call(ADMIN, "stop", run="")
    asked = load_recipe(recipe_path("folder-fedavg"), []).resolved()
    asked["data"]["classes"] = [f"class {i} of this long list" for i in range(45_000)]
    asked["method"]["model"]["classes"] = 45_000
    refusal = world.call(ADMIN, "submit", recipe=asked, sites=[])
    assert isinstance(refusal, Refused)
    assert "recipe: has " in refusal.detail
    assert not (tmp_path / "one" / asked["name"]).exists()
    world.call("a", "hello", declined="")


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
    refusal = world.call("a", "hello", declined="")
    assert isinstance(refusal, Refused)
    assert refusal.reason is Reason.NOT_NOW
    assert isinstance(world.call("b", "hello", declined=""), Message)
    assert any(line.startswith("a: the answer cannot be sent") for line in world.lines)


def test_a_flood_of_refusals_leaves_a_few_lines(training: World) -> None:
    for _ in range(500):
        training.call("a", "odd")
    assert sum(line.startswith("a: refused") for line in training.lines) == MAX_LINES_PER_PEER
