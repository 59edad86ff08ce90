"""A run as its server has it: who is waited for, who is let in, and from where it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from manyhands.errors import QuorumLost, Refused
from manyhands.federation.enrolment import Enrolment
from manyhands.federation.open_run import load_run_session
from manyhands.federation.run_session import RunSession
from manyhands.federation.site_delays import MAX_RETURNS
from manyhands.messages.message import Message
from manyhands.runs.compose import compose, silos_of
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.shipped import recipe_path
from manyhands.silos.silo import DeviceContext
from manyhands.silos.silo_memory import SiloMemory
from manyhands.tensors import Tensors, sha256

SITES = ("silo-0", "silo-1", "silo-2")
SMALL = ["partition.silos=3", "data.limit=60", "method.rounds=3", "method.training.steps=1", "method.model.widths=[8]"]
LONG = 1e6


def recipe(*changes: str) -> Recipe:
    return load_recipe(recipe_path("digits-fedavg"), [*SMALL, *changes])


def begun(path: Path, recipe: Recipe) -> RunSession:
    folder = RunFolder(path)
    with folder.open(recipe.resolved(), resume=False):
        pass
    session = RunSession(folder, recipe, Enrolment(SITES), torch.device("cpu"), since=0.0)
    session.write()
    return session


class Driver:
    """Sites without a network."""

    def __init__(self, session: RunSession) -> None:
        self.session, self.now = session, 0.0
        silos, _ = silos_of(session.recipe)
        self.silos = {silo.name: silo for silo in silos}
        for silo in silos:
            silo.device_context = DeviceContext()
        self.talks: dict[str, Iterator[Message]] = {}
        self.kept: dict[tuple[str, int], Tensors] = {}

    def facts(self, name: str, *kept: int) -> dict[str, Any]:
        """What a site states when it enrols."""
        images = len(self.silos[name].images)
        return {"recipe": self.session.recipe_hash, "images": images, "held_out": 0, "kept": list(kept)}

    def gather(self, *names: str) -> None:
        for name in names:
            assert self.session.enrol(name, self.facts(name, 1, 2, 3), self.now) is None
        assert self.session.is_gathered(self.now)
        self.begin(self.session.start(self.now))

    def begin(self, messages: Mapping[str, Message]) -> None:
        for name in messages:
            self.talks[name] = self.session.method.silo(self.silos[name])
            self.say(name, next(self.talks[name]))

    def say(self, name: str, message: Message) -> None:
        if self.session.plan.operations[message.op].closes_round:
            self.kept[name, message.facts["round"] + 1] = dict(self.silos[name].memory)
        self.session.call(name, message, "", 0, self.now)

    def restart_server(self, session: RunSession) -> RunSession:
        """All gather anew at a server that knows what its folder has; sites go on from what they keep of that round."""
        self.session = session
        for name in SITES:
            self.recall(name)
        self.gather(*SITES)
        return session

    def restart_site(self, name: str) -> None:
        """It goes on by itself where it can; else all begin the round again."""
        self.recall(name)
        alone = self.session.enrol(name, self.facts(name, self.session.round), self.now)
        if isinstance(alone, Message):
            self.begin({name: alone})
            return
        assert self.session.must_restart_round
        self.session.restart_round(self.now)
        for site in SITES:
            self.recall(site)
        self.gather(*SITES)

    def recall(self, name: str) -> None:
        """What a site's folder has of the newest closed round is all that it remembers."""
        self.silos[name].memory = SiloMemory(self.kept[name, self.session.round])

    def close(self, rounds: int) -> None:
        """Go on until so many rounds are closed."""
        while rounds - 1 not in self.turn():
            pass

    def turn(self) -> list[int]:
        """The rounds that were closed, when everyone has said what comes next."""
        rounds = [done.number for done in self.session.closed()]
        for name, answer in self.session.answers().items():
            assert isinstance(answer, Message)
            try:
                self.say(name, self.talks[name].send(answer))  # type: ignore[attr-defined]
            except StopIteration:
                self.session.finish(name)
        return rounds


def test_it_waits_for_those_who_are_asked_and_no_longer_than_it_may(tmp_path: Path) -> None:
    driver = Driver(session := begun(tmp_path / "run", recipe("federation.gather=100")))
    assert not session.is_gathered(0.0)
    for name in SITES[:2]:
        session.enrol(name, driver.facts(name), 0.0)
    assert session.sites.awaited == ["silo-2"]
    assert not session.is_gathered(99.0)
    assert session.is_gathered(100.0)
    assert set(session.start(100.0)) == set(SITES[:2])


def test_a_site_that_has_yet_to_approve_is_waited_for_and_one_that_declines_is_not(tmp_path: Path) -> None:
    driver = Driver(session := begun(tmp_path / "run", recipe()))
    for name in SITES[:2]:
        session.enrol(name, driver.facts(name), 0.0)
    session.decline("silo-2", "is not approved here", waits=True)
    assert (
        load_run_session(RunFolder(tmp_path / "run"), torch.device("cpu"), now=0.0).sites.waiting
        == session.sites.waiting
    )
    assert not session.is_gathered(1.0)
    session.decline("silo-2", "this site's policy: labels would leave", waits=False)
    assert session.is_gathered(1.0)


def test_too_few_end_the_run_by_name(tmp_path: Path) -> None:
    driver = Driver(session := begun(tmp_path / "run", recipe("quorum=3")))
    for name in SITES[:2]:
        session.enrol(name, driver.facts(name), 0.0)
    session.decline("silo-2", "its policy", waits=False)
    with pytest.raises(QuorumLost, match=r"2 sites are ready, the recipe asks for 3 \(silo-2: its policy\)"):
        session.is_gathered(1.0)


def test_a_restarted_server_goes_on_from_the_last_closed_round(tmp_path: Path) -> None:
    driver = Driver(begun(tmp_path / "run", recipe()))
    driver.gather(*SITES)
    driver.close(2)
    again = load_run_session(RunFolder(tmp_path / "run"), torch.device("cpu"), now=5.0)
    assert (again.stage, again.round, again.sites.awaited) == ("gathering", 2, list(SITES))
    other = Driver(again)
    other.gather(*SITES)
    while not again.is_complete:
        other.turn()
    assert again.round == 3


HUSCF = ["partition.silos=3", "data.limit=60", "method.rounds=2", "method.training.steps=1", "method.model.width=4"]


@pytest.mark.parametrize("killed", [SITES[1], "server"])
@pytest.mark.parametrize("name", ["digits-fedavg", "digits-huscf"])
def test_whoever_is_killed_in_the_second_round_the_weights_are_those_of_one_process(
    tmp_path: Path, name: str, killed: str
) -> None:
    """The law of ``test_network.py``, without processes and without a network."""
    asked = load_recipe(recipe_path(name), HUSCF if name == "digits-huscf" else [*SMALL, "method.keep_optimiser=true"])
    driver = Driver(session := begun(tmp_path / "run", asked))
    driver.gather(*SITES)
    driver.close(1)
    if killed == "server":
        session = driver.restart_server(load_run_session(RunFolder(tmp_path / "run"), torch.device("cpu"), now=1.0))
    else:
        driver.restart_site(killed)
    while not session.is_complete:
        driver.turn()
    for _ in compose(asked, tmp_path / "one"):
        pass
    expected = RunFolder(tmp_path / "one").state()
    assert sha256(RunFolder(tmp_path / "run").state().server) == sha256(expected.server)
    for site in SITES:
        assert sha256(driver.silos[site].memory) == sha256(expected.memories.get(site, {}))


def test_a_site_that_lost_what_it_kept_is_refused_or_admitted_as_the_recipe_says(tmp_path: Path) -> None:
    for lost in ("refuse", "admit"):
        driver = Driver(begun(tmp_path / lost, recipe(f"federation.lost={lost}")))
        driver.gather(*SITES)
        driver.close(1)
        again = load_run_session(RunFolder(tmp_path / lost), torch.device("cpu"), now=0.0)
        with pytest.raises(Refused, match="has lost") if lost == "refuse" else nullcontext():
            again.enrol("silo-0", driver.facts("silo-0"), 0.0)
        assert again.enrol("silo-1", driver.facts("silo-1", 1), 0.0) is None
        assert any("silo-0 has lost" in line for line in again.folder.problems) == (lost == "admit")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"images": 7}, "7 images"),
        ({"images": 1_000_001}, "images"),
        ({"images": 0}, "images"),
    ],
)
def test_what_a_site_says_of_itself_must_be_so(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    driver = Driver(session := begun(tmp_path / "run", recipe()))
    driver.gather(*SITES)
    with pytest.raises(Refused, match=why):
        session.enrol("silo-0", driver.facts("silo-0") | changed, 0.0)


def test_no_site_enrols_more_images_than_the_recipe_allows(tmp_path: Path) -> None:
    driver = Driver(session := begun(tmp_path / "run", recipe("federation.images=20")))
    with pytest.raises(Refused, match="federation.images allows 20"):
        session.enrol("silo-0", driver.facts("silo-0") | {"images": 21}, 0.0)
    assert session.sites.enrolled == set()


def test_a_round_is_closed_at_its_deadline_without_the_silent(tmp_path: Path) -> None:
    driver = Driver(session := begun(tmp_path / "run", recipe("federation.deadline=30", "federation.gather=0")))
    for name in SITES:
        session.enrol(name, driver.facts(name), 0.0)
    messages = session.start(0.0)
    driver.begin({name: message for name, message in messages.items() if name != "silo-2"})
    assert driver.turn() == []
    assert session.coordinator is not None
    session.coordinator.check_deadline(29.0)
    assert driver.turn() == []
    session.coordinator.check_deadline(30.0)
    assert driver.turn() == [0]
    assert "silo-2" in session.folder.rounds[0].missing


def test_of_many_barriers_whoever_comes_back_has_all_begin_the_round_again(tmp_path: Path) -> None:
    asked = load_recipe(
        recipe_path("digits-huscf"),
        ["partition.silos=3", "data.limit=60", "method.rounds=2", "method.training.steps=2", "method.model.width=4"],
    )
    driver = Driver(session := begun(tmp_path / "run", asked))
    driver.gather(*SITES)
    for _ in range(5):
        driver.turn()
    assert session.enrol("silo-1", driver.facts("silo-1"), 1.0) is None
    assert session.must_restart_round
    session.restart_round(1.0)
    assert session.stage == "gathering"
    assert session.round == 0
    driver.gather(*SITES)
    driver.close(1)


def test_after_the_last_round_whoever_comes_back_goes_on_alone_since_others_have_finished(tmp_path: Path) -> None:
    asked = load_recipe(
        recipe_path("digits-huscf"),
        ["partition.silos=3", "data.limit=60", "method.rounds=2", "method.training.steps=2", "method.model.width=4"],
    )
    driver = Driver(session := begun(tmp_path / "run", asked))
    driver.gather(*SITES)
    driver.close(2)
    session.finish("silo-0")
    session.reset_site("silo-1")
    assert isinstance(session.enrol("silo-1", driver.facts("silo-1", 2), 1.0), Message)
    assert not session.must_restart_round
    session.finish("silo-1")
    session.finish("silo-2")
    assert session.is_complete


def test_of_one_barrier_it_goes_on_alone(tmp_path: Path) -> None:
    driver = Driver(session := begun(tmp_path / "run", recipe()))
    driver.gather(*SITES)
    driver.turn()
    assert isinstance(session.enrol("silo-1", driver.facts("silo-1"), 1.0), Message)
    assert not session.must_restart_round


def test_a_site_that_begins_again_after_every_start_costs_so_many_returns_and_no_round(tmp_path: Path) -> None:
    asked = load_recipe(recipe_path("digits-huscf"), [*HUSCF, "federation.deadline=600"])
    driver = Driver(session := begun(tmp_path / "run", asked))
    driver.gather(*SITES)
    halts = 0
    for _ in range(200):
        driver.now += 1
        session.reset_site("silo-1")
        session.enrol("silo-1", driver.facts("silo-1", 1), driver.now)
        if session.must_restart_round:
            halts += 1
            session.restart_round(driver.now)
            driver.gather(*SITES)
        if list(session.closed()):
            break
        driver.turn()
    assert halts == MAX_RETURNS
    assert "came back 4 times" in session.folder.rounds[0].missing["silo-1"]
    assert session.folder.rounds[0].losses.keys() == {"silo-0", "silo-2"}
    assert session.must_restart_round  # the next round is begun with it
    session.restart_round(driver.now)
    driver.gather(*SITES)
    driver.close(2)
    assert session.folder.rounds[1].missing == {}


def test_what_a_return_has_the_others_do_again_is_of_the_same_deadline(tmp_path: Path) -> None:
    asked = load_recipe(recipe_path("digits-huscf"), [*HUSCF, "federation.deadline=100", "federation.gather=1000"])
    driver = Driver(session := begun(tmp_path / "run", asked))
    driver.gather(*SITES)
    session.enrol("silo-1", driver.facts("silo-1"), 40.0)
    assert session.must_restart_round
    session.restart_round(40.0)
    for site in ("silo-0", "silo-2"):
        session.enrol(site, driver.facts(site), 41.0)
    assert not session.is_gathered(89.0)
    assert session.is_gathered(90.0)  # those who must begin again wait half a deadline for it, not gather
    session.enrol("silo-1", driver.facts("silo-1"), 90.0)
    driver.begin(session.start(90.0))
    session.enrol("silo-1", driver.facts("silo-1"), 91.0)
    assert not session.must_restart_round
    assert "cost the others 91 s" in session.coordinator.absent["silo-1"]  # type: ignore[union-attr]


def test_what_the_server_does_for_all_makes_nobody_late(tmp_path: Path) -> None:
    driver = Driver(session := begun(tmp_path / "run", recipe("federation.deadline=30")))
    driver.gather(*SITES[:2], "silo-2")
    session.add_busy_time(1000.0)
    session.check_deadline(1000.0)
    assert session.coordinator is not None
    assert session.coordinator.absent == {}


def test_a_site_that_keeps_the_server_busy_is_not_heard_before_the_next_round(tmp_path: Path) -> None:
    driver = Driver(session := begun(tmp_path / "run", recipe("federation.deadline=30")))
    driver.gather(*SITES)
    for _ in range(40):
        session.charge({"silo-1": 1.0})
    assert session.muted == {"silo-1"}
    assert session.coordinator is not None
    assert session.coordinator.late.seconds["silo-1"] >= 30


def test_a_site_that_comes_after_the_last_round_is_not_told_to_wait(tmp_path: Path) -> None:
    session = begun(tmp_path, recipe())
    session.stop("exporting")
    with pytest.raises(Refused, match="last round is closed"):
        session.call("silo-0", Message("join"), "", 0, 0.0)
