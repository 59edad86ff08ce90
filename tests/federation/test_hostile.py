"""One of three sites says whatever it likes: the others come to their end, and lose one deadline a round at most."""

from __future__ import annotations

import json
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from manyhands.errors import Refused
from manyhands.federation.enrolment import Enrolment
from manyhands.federation.plans import SITE_PLAN
from manyhands.federation.run_session import RunSession
from manyhands.federation.server import FederationServer
from manyhands.federation.site_connections import ReceivedCall
from manyhands.messages.facts import Fact, Listed, Number, Table, Text, Whole
from manyhands.messages.message import Message
from manyhands.messages.operation import Payload
from manyhands.runs.compose import silos_of
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.shipped import recipe_path
from manyhands.silos.silo import DeviceContext
from manyhands.tensors import Tensors

GOOD, BAD = ("silo-0", "silo-1"), "silo-2"
DEADLINE, ROUNDS, TICK = 10.0, 2, 0.01
SMALL = ["partition.silos=3", "data.limit=60", "evaluation.images=0", f"method.rounds={ROUNDS}",
         f"federation.deadline={DEADLINE}", "method.training.steps=1"]  # fmt: skip
UNET, GAN = ["method.model.widths=[8]"], ["method.model.width=4", "method.training.batch=8"]
METHODS = {
    "fedavg": ("digits-fedavg", UNET),
    "collafuse": ("digits-collafuse", [*UNET, "sampling.steps=3"]),
    "huscf": ("digits-huscf", GAN),
    "local": ("digits-fedavg", [*UNET, "method.kind=local"]),
    **{kind: ("digits-huscf", [*GAN, f"method.kind={kind}"]) for kind in ("mdgan", "splitgan", "pflgan", "hflgan")},
}
SPOILT = ("mdgan", "splitgan")
"""Methods in which large values of one site, passed on to the networks of others, let those diverge."""


def recipe(kind: str) -> Recipe:
    name, changes = METHODS[kind]
    return load_recipe(recipe_path(name), [*SMALL, *changes])


class FakeConnections:
    """Stands in for ``SiteConnections``; nobody has to wait, but time passes."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.muted: frozenset[str] = frozenset()
        self.spent: dict[str, float] = defaultdict(float)
        self.came: deque[ReceivedCall] = deque()
        self.said: deque[tuple[str, Message | Refused | None]] = deque()

    def next(self, timeout: float) -> ReceivedCall | None:
        self.clock.now += TICK
        while self.came:
            called = self.came.popleft()
            if called.peer not in self.muted:
                return called
        return None

    def answer(self, peer: str, answer: Message | Refused) -> None:
        self.said.append((peer, answer))

    def forget(self, peers: Iterable[str]) -> None:
        self.said.extend((peer, None) for peer in peers)

    def allow(self, peers: Any = (), bounds: Any = None) -> None: ...


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class World:
    """A server, two sites that do as they should, and one that does not."""

    def __init__(self, path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock()
        monkeypatch.setattr("manyhands.federation.server.time", self.clock)
        self.connections, self.lines, self.recipe = FakeConnections(self.clock), list[str](), recipe
        sites = (*GOOD, BAD)
        connections: Any = self.connections
        folder = RunFolder(path / "run")
        with folder.open(recipe.resolved(), resume=False):
            pass
        self.session = RunSession(folder, recipe, Enrolment(sites), torch.device("cpu"), since=0.0)
        self.server = FederationServer(self.session, connections, self.lines.append)
        self.silos = {silo.name: silo for silo in silos_of(recipe)[0]}
        for silo in self.silos.values():
            silo.device_context = DeviceContext()
        self.talks: dict[str, Any] = {}
        self.count: dict[str, int] = defaultdict(int)
        for site in sites:
            self.enrol(site)

    def say(self, site: str, message: Message, session: str = "") -> None:
        self.count[site] += 1
        self.connections.came.append(ReceivedCall(site, session or f"{site} {self.count[site]}", 1, message))

    def enrol(self, site: str) -> None:
        self.talks.pop(site, None)
        images = len(self.silos[site].images)
        kept = list(range(1, ROUNDS + 1))
        self.say(site, Message("enrol", facts=self.enrolment(images, kept)))

    def enrolment(self, images: int, kept: list[int]) -> dict[str, Any]:
        return {"recipe": self.session.recipe_hash, "images": images, "held_out": 0, "kept": kept}

    def go_on(self) -> None:
        """A step of the server, and what those who do as they should say to what it answers."""
        self.server.step()
        for _ in range(len(self.connections.said)):
            site, answer = self.connections.said.popleft()
            if site not in GOOD:
                continue
            if answer is None:
                self.enrol(site)
            elif isinstance(answer, Message) and answer.op == "enrol":
                self.talks[site] = self.recipe.method.silo(self.silos[site])
                self.say(site, next(self.talks[site]))
            elif site in self.talks:
                self.hear(site, answer)

    def hear(self, site: str, answer: Message | Refused) -> None:
        talk = self.talks[site]
        try:
            self.say(site, talk.throw(answer) if isinstance(answer, Refused) else talk.send(answer))
        except StopIteration:
            del self.talks[site]
            self.say(site, Message("ended"))

    @property
    def rounds(self) -> int:
        assert self.session.stage in ("gathering", "training", "exporting"), self.lines[-3:]
        return len(self.session.folder.rounds)


def facts(expected: dict[str, Fact] | Any, *, least: bool) -> dict[str, Any]:
    """The least, or the most, that may be told."""
    return {name: _value(fact, least=least) for name, fact in expected.items()}


def _value(fact: Fact, *, least: bool) -> Any:
    match fact:
        case Whole() | Number():
            return fact.minimum if least else fact.maximum
        case Text():
            return "" if least else "\x1b[2J\ud800" + "é" * (fact.maximum - 5)
        case Listed():
            return [] if least else [_value(fact.item, least=False)] * fact.maximum
        case Table():
            return {}
    return least


def tensors(carried: Payload, value: float) -> Tensors:
    """What fits the plan, with one item where a length is open."""
    return {
        name: torch.full([1 if n is None else n for n in like.shape], value).to(like.dtype)
        for name, like in carried.tensors.items()
    }


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = {"a": [value]}
    return value


def odd(op: str, carried: Payload, large: float) -> Iterator[Message]:
    """Much that one could say by an operation: what is in its plan, at the wrong time, and what is not."""
    low, high = (facts(carried.facts, least=least) for least in (True, False))
    for values in (low, high):
        for value in (0.0, large, -1.0):
            yield Message(op, tensors(carried, value), values)
    yield Message(op, {}, low)
    yield Message(op, tensors(carried, math.nan), low)
    yield Message(op, {"x" * 70_000: torch.ones(1)}, high)
    yield Message(op, tensors(carried, 0.0), {name: nested(3000) for name in carried.facts} or {"a": nested(3000)})
    yield Message(op, tensors(carried, 0.0), dict.fromkeys(carried.facts))


def goes(message: Message) -> bool:
    """Whether a site takes its leave with this message, which is then all that it may say."""
    if message.op not in ("decline", "ended"):
        return False
    try:
        SITE_PLAN.check(message, "up")
    except Refused:
        return False
    return True


def words(world: World) -> list[Message]:
    """All of these, of all operations, but nothing by which a site takes its leave."""
    large = 9.0 if world.recipe.method.kind in SPOILT else 5.9e4
    every = {**world.recipe.method.plan().operations, **SITE_PLAN.operations}
    messages = [message for op, operation in every.items() for message in odd(op, operation.up, large)]
    messages = [message for message in messages if not goes(message)]
    named = {"recipe": world.session.recipe_hash, "images": len(world.silos[BAD].images)}
    right = [
        Message(
            message.op, message.tensors, {k: (named | {"round": number}).get(k, v) for k, v in message.facts.items()}
        )
        for number in range(ROUNDS)
        for message in messages
        if message.op not in ("decline", "ended")
    ]
    return [*messages, *right, Message("x" * 32), Message("hello", facts={"declined": ""})]


@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize("kind", METHODS)
def test_whatever_one_site_says_the_others_come_to_their_end(
    kind: str, way: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, recipe(kind), monkeypatch)
    while world.session.coordinator is None:
        world.go_on()
    began, said = world.clock.now, words(world)[::way]
    for number in range(100_000):
        if world.rounds >= ROUNDS or number * TICK > 10 * ROUNDS * DEADLINE:
            break
        if len(world.connections.came) < 4:
            world.say(BAD, said[number % len(said)])
        world.go_on()
    assert number > len(said) / 2
    assert world.rounds == ROUNDS
    assert world.clock.now - began <= ROUNDS * (DEADLINE + 2)
    check_what_is_kept(world)


@pytest.mark.parametrize("goes", [{}, {"ended": {}}, {"decline": {"why": "it would rather not", "waits": False}}])
@pytest.mark.parametrize("kind", ["fedavg", "huscf"])
def test_a_site_that_goes_says_so_and_costs_the_others_nothing(
    kind: str, goes: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, recipe(kind), monkeypatch)
    while world.session.coordinator is None:
        world.go_on()
    began = world.clock.now
    for op, facts in goes.items():
        world.say(BAD, Message(op, {}, facts))
    while world.rounds < ROUNDS and world.clock.now < 10 * ROUNDS * DEADLINE:
        world.go_on()
    assert (world.clock.now - began < DEADLINE) == bool(goes)


@pytest.mark.parametrize("kind", METHODS)
def test_a_site_that_falls_silent_costs_one_deadline_a_round(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, recipe(kind), monkeypatch)
    while world.rounds < ROUNDS and world.clock.now < 10 * ROUNDS * DEADLINE:
        world.go_on()
    assert world.rounds == ROUNDS
    assert world.clock.now <= DEADLINE + 2  # nobody waits again for one that does not come back
    check_what_is_kept(world)


@pytest.mark.parametrize(("kind", "op"), [("collafuse", "denoise"), ("huscf", "draw")])
def test_the_server_draws_for_nobody_while_it_trains(
    kind: str, op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, recipe(kind), monkeypatch)
    while world.session.coordinator is None:
        world.go_on()
    carried = world.recipe.method.plan().operations[op].up
    world.say(BAD, Message(op, tensors(carried, 0.0), facts(carried.facts, least=True)))
    for _ in range(5):
        world.go_on()
    assert f"{BAD}: refused: not now: the server draws for nobody while it trains" in world.lines


def check_what_is_kept(world: World) -> None:
    """Strict JSON, and words that anybody can bear to read."""

    def constant(name: str) -> None:
        raise AssertionError(name)

    for line in (world.session.folder.path / "journal.jsonl").read_text().splitlines():
        entry = json.loads(line, parse_constant=constant)
        assert set(GOOD) <= entry["losses"].keys() or world.recipe.method.kind == "collafuse"
        assert all(why.isprintable() and len(why) <= 1100 for why in entry["missing"].values())
        assert len(line) < 20_000
    assert all(len(line) < 5000 for line in world.lines)
