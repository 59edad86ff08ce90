"""A run between sites, as its server has it: who takes part, how far it is, and what is kept of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from manyhands.errors import MessageError, Reason, Refused, RunFolderError
from manyhands.federation.delays import REPEAT_SHARE, SiteDelays
from manyhands.federation.policy import recipe_text
from manyhands.links.coordinator import RoundCoordinator
from manyhands.messages.ledger import Ledger
from manyhands.messages.message import Message, encoded_size
from manyhands.runs.run_folder import Round, RunFolder, State
from manyhands.runs.timer import RoundTimer, check_quorum
from manyhands.silos.memory import compact_heap, peak_memory, release_memory
from manyhands.silos.quorum import check_present, has_quorum
from manyhands.subprocess_task import SubprocessTask

if TYPE_CHECKING:
    from manyhands.links.coordinator import ClosedRound
    from manyhands.messages.plan import Plan
    from manyhands.methods.base import Server
    from manyhands.runs.recipe import Recipe
    from manyhands.tensors import Tensors

FILE = "federation.json"
Stage = Literal["gathering", "training", "exporting", "ended", "stopped", "failed"]
OPEN, OVER = frozenset({"gathering", "training"}), frozenset({"ended", "stopped", "failed"})


@dataclass
class RunSession:
    """It gathers its sites, trains with them, and gathers them anew whenever one must begin the round again.

    A round of several barriers can only be begun by all together. It is begun again from the newest round that was
    closed, so that nothing depends on who was lost when.
    """

    folder: RunFolder
    recipe: Recipe
    expected: tuple[str, ...]
    device: torch.device
    since: float
    stage: Stage = "gathering"
    why: str = ""
    roster: dict[str, int] = field(default_factory=dict)
    held_out: dict[str, int] = field(default_factory=dict)
    enrolled: set[str] = field(default_factory=set)
    declined: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        self.method = self.recipe.method
        self.coordinator: RoundCoordinator | None = None
        self.server: Server | None = None
        self.delays = SiteDelays(self.recipe.federation.deadline, self.since)
        self._returning: set[str] = set()
        self._wait = self.recipe.federation.gather
        self._begun: set[str] = set()
        self._fresh = True
        self._clock: RoundTimer | None = None
        self._pending: dict[str, str] = {}
        self._images: dict[str, int] = {}
        self._export: SubprocessTask[..., None] | None = None

    @cached_property
    def offer(self) -> Message:
        """What sites are told of it; it can be told, or the run could not have been begun."""
        return Message("hello", facts={"run": self.folder.path.name, "recipe": recipe_text(self.recipe)})

    @cached_property
    def plan(self) -> Plan:
        """The method's; asked for once there is a server, which knows its networks."""
        return self.method.plan()

    @property
    def round(self) -> int:
        """How many rounds are closed."""
        return self.server.round if self.server else self.folder.kept

    @property
    def awaited(self) -> list[str]:
        """The sites that a run which gathers waits for."""
        settled = self.enrolled | self.declined.keys() | self.absent
        return [site for site in self.roster or self.expected if site not in settled]

    def write(self) -> None:
        """Keep how it stands, for a server that begins anew."""
        state = {"stage": self.stage, "why": self.why, "expected": self.expected, "roster": self.roster}
        state |= {"held_out": self.held_out, "declined": self.declined, "waiting": self.waiting}
        self.folder.write(FILE, state)

    def enrol(self, site: str, facts: Mapping[str, Any], now: float) -> Message | Refused | None:
        """Take a site in. It is answered when all are there, or at once where it can go on by itself."""
        if self.stage in OVER:
            return Refused(Reason.NOT_NOW, f"the run is over: {self.stage} {self.why}".rstrip())
        if self.roster and site not in self.roster:
            return Refused(Reason.NOT_NOW, f"the run began without {site}")
        if self.roster and self.roster[site] != facts["images"]:
            return Refused(
                Reason.WRONG_WEIGHT, f"says {facts['images']} images, {self.roster[site]} when the run began"
            )
        if facts["images"] > (limit := self.recipe.federation.images):
            return Refused(Reason.WRONG_WEIGHT, f"says {facts['images']:,} images, federation.images allows {limit:,}")
        kept = [number for number in facts["kept"] if 0 < number <= self.round]
        if not kept and any(site not in done.missing for done in self.folder.rounds[: self.round]):
            if self.recipe.federation.lost == "refuse":
                return Refused(
                    Reason.NOT_NOW, f"{site} took part and has kept nothing of it; federation.lost = 'admit' takes it"
                )
            self.folder.problem(f"{site} has lost what it kept, and goes on as if it were new")
        self.declined.pop(site, None)
        self.waiting.pop(site, None)
        self.absent.discard(site)
        self._images[site], self.held_out[site] = facts["images"], facts["held_out"]
        self.enrolled.add(site)
        if self.coordinator is None:
            return None
        if len(self.plan.barriers) > 1:
            self._return(site, now)
            return None
        return self._begin(site)

    def _return(self, site: str, now: float) -> None:
        """All begin the round again for a site that comes back, unless it has them do so too often, or too much."""
        assert self.coordinator is not None
        self._returning.add(site)
        if why := self.delays.come_back(site, now):
            self.coordinator.drop(site, why)

    @property
    def muted(self) -> set[str]:
        """The sites that are not heard before the next round."""
        return self.delays.muted

    def is_barrier(self, message: Message) -> bool:
        """Whether others wait for this, too."""
        return self.coordinator is not None and message.op in self.plan.barriers

    def add_busy_time(self, seconds: float) -> None:
        """The server was busy for all: nobody is late meanwhile."""
        self.delays.busy += seconds

    def charge(self, spent: Mapping[str, float]) -> bool:
        """The server was busy with sites, of no use to others: that is the loss of each."""
        for site, seconds in spent.items():
            self.add_busy_time(seconds)
            if self.coordinator is not None and site in self.roster:
                self.coordinator.charge_delay(site, seconds)
                self.delays.keep_busy(site, seconds)
        return bool(spent)

    def check_deadline(self, now: float) -> None:
        """Go on without those who are silent for too long, while the server listens."""
        if self.coordinator is not None:
            self.coordinator.check_deadline(now - self.delays.busy)

    def reset_site(self, site: str) -> None:
        """A site has begun anew: nobody there waits any more for what was called before."""
        self._pending.pop(site, None)
        if self.coordinator is None:
            self.enrolled.discard(site)

    def decline(self, site: str, why: str, *, waits: bool) -> None:
        """A site does not take part, or no longer, or not yet: somebody there has to approve it first."""
        (self.waiting if waits else self.declined)[site] = why
        self.enrolled.discard(site)
        if self.coordinator is not None and site in self._begun:
            self.coordinator.drop(site, why)
        self.write()

    def is_gathered(self, now: float) -> bool:
        """Whether all are there, or those who are have waited long enough."""
        if self.stage != "gathering" or (self.awaited and now < self.since + self._wait):
            return False
        there, silos = len(self.enrolled), len(self.roster or self.expected)
        if self.awaited and not self.declined and not has_quorum(self.recipe.quorum, there, silos):
            return False
        check_present(self.recipe.quorum, there, silos, self.declined | self.waiting, "sites are there")
        return True

    def start(self, now: float) -> dict[str, Message]:
        """Go on from the newest round that was closed, with those who are there; what each is told."""
        self.roster = self.roster or {site: self._images[site] for site in sorted(self.enrolled)}
        self.server = self.method.server(self.recipe.seed, self.roster)
        self.server.device = self.device
        release_memory(at_once=not self.server.trains)
        self.ledger = Ledger()
        state = self.folder.resume(self.roster)
        if state is not None:
            self.server.resume(state.round, state.stores, state.server)
            self.ledger.load(state.ledger)
        self.coordinator = RoundCoordinator(
            self.server, self.plan, self.roster, self.recipe.quorum, self.recipe.federation.deadline
        )
        self.coordinator.earlier, self.coordinator.late = self._earlier, self.delays.late
        self.delays.begin(now, self.since)
        for site in self.roster.keys() - self.enrolled:
            self.coordinator.absent[site] = (self.declined | self.waiting).get(site, "was not there")
        self._clock = RoundTimer(self.ledger, self.server)
        self._pending, self._returning, self._begun, self._fresh, self.stage = {}, set(), set(), True, "training"
        self.write()
        return {site: self._begin(site) for site in self.enrolled if site in self.roster}

    @property
    def must_restart_round(self) -> bool:
        """Whether a site came back that cannot go on by itself: at once, or with the next round if it was left out."""
        ready = self._returning - self.delays.left_out
        return self.coordinator is not None and any(
            self._fresh or site not in self.coordinator.absent for site in ready
        )

    def restart_round(self, now: float) -> None:
        """Gather anew: whoever is in the open round begins it again."""
        assert self.coordinator is not None
        self.absent = self.coordinator.absent.keys() - self._returning
        self.delays.restart_round(self._returning, now)
        self._wait = min(self.recipe.federation.gather, (1 - REPEAT_SHARE) * self.recipe.federation.deadline)
        self.stage, self.since, self.coordinator = "gathering", now, None
        self.enrolled, self._pending = set(), {}

    def conclude(self) -> bool:
        """Keep the end, and write of it what is for people: elsewhere, so that the server goes on answering.

        Whether all is written.
        """
        if self._export is None:
            if self.stage != "exporting":
                self.save()
                self.stop("exporting")
            known = (self.held_out, self.folder.problems, peak_memory())
            self._export = SubprocessTask(_export, str(self.folder.path), str(self.device), *known)
        if self._export.is_done:
            self._export.result()
            return True
        return False

    def stop(self, stage: Stage, why: str = "") -> None:
        """It is over."""
        self.stage, self.why, self.coordinator = stage, why, None
        if self._export is not None:
            self._export.stop()
        self.write()

    def call(self, site: str, message: Message, session: str, number: int, now: float) -> Refused | None:
        """Take a message of the method; a refusal is answered at once."""
        if self.stage == "exporting":
            return Refused(Reason.NOT_NOW, "the last round is closed")
        if self.coordinator is None or site not in self._begun:
            return Refused(Reason.NOT_NOW, "the run waits for its sites")
        op = message.op if message.op in self.plan.operations else "refused"
        if op != "refused" and self.plan.operations[op].draws:
            return Refused(Reason.NOT_NOW, "the server draws for nobody while it trains")
        adds = self.server is not None and not self.server.trains
        try:
            self.ledger.add(site, "up", op, encoded_size(message))
            with compact_heap() if adds else nullcontext():
                self.coordinator.submit(site, message, session, number, now - self.delays.busy)
        except MessageError as error:
            return Refused(Reason.MALFORMED, str(error))
        except Refused as refusal:
            return refusal
        self._pending[site], self._fresh = session, False
        return None

    def finish(self, site: str) -> None:
        """A site has come to its end."""
        if self.coordinator is not None and site in self._begun:
            self.coordinator.finish(site)

    def closed(self) -> Iterator[Round]:
        """The rounds that were closed since; each is kept before anybody is answered."""
        while self.coordinator is not None and self.coordinator.closed:
            yield self._keep(self.coordinator.closed.pop(0))

    def answers(self) -> dict[str, Message | Refused]:
        """What there is to be said to those who have called."""
        answers: dict[str, Message | Refused] = {}
        for site, session in list(self._pending.items()):
            if self.coordinator is None:
                break
            try:
                reply = self.coordinator.collect(site, session)
                if reply is None:
                    continue
                self.plan.check(reply, "down")
                self.ledger.add(site, "down", reply.op, encoded_size(reply))
                answers[site] = reply
            except MessageError as error:
                answers[site] = Refused(Reason.NOT_NOW, f"the answer cannot be told: {error}")
            except Refused as refusal:
                answers[site] = refusal
            del self._pending[site]
        return answers

    @property
    def is_complete(self) -> bool:
        """Whether all who are there have come to their end."""
        if self.coordinator is None or self.server is None or self.server.round < self.method.rounds:
            return False
        return not (self.roster.keys() - self.coordinator.done - self.coordinator.absent.keys())

    def save(self) -> None:
        """Keep the closed round."""
        assert self.server is not None
        state, stores = self.server.state_dict(), self.server.stores()
        self.folder.save(State(self.server.round, state, {}, self.roster, self.ledger.entries(), stores))

    def _begin(self, site: str) -> Message:
        assert self.server is not None
        self._begun.add(site)
        return Message("enrol", facts={"round": self.server.round, "sites": len(self.enrolled)})

    def _keep(self, closed: ClosedRound) -> Round:
        assert self._clock is not None
        done = self._clock.round_of(closed, self.method.rounds)
        check_quorum(done, closed, self.recipe.quorum)
        if done.note:
            self.folder.problem(f"round {done.number + 1}: {done.note}")
        self.folder.append(done)
        self.save()
        self._clock.start()
        self._fresh = True
        self.delays.close_round()
        return done

    def _earlier(self) -> Tensors:
        return self.folder.earlier() or self.method.server(self.recipe.seed, self.roster).state_dict()


def _export(path: str, device: str, held_out: dict[str, int], problems: list[str], memory: int) -> None:
    from manyhands.federation.export import export  # where there is room for it

    export(RunFolder(Path(path)), device, held_out, problems, memory)


def load_run_session(folder: RunFolder, device: torch.device, now: float) -> RunSession:
    """A run that a server which ended had begun."""
    from manyhands.runs.recipe import parse_recipe

    try:
        state = json.loads((folder.path / FILE).read_text())
        recipe = parse_recipe(folder.recipe, str(folder.path / "recipe.toml"))
        expected, roster = tuple(state["expected"]), dict(state["roster"])
        running = RunSession(folder, recipe, expected, device, now, why=state["why"], roster=roster)
        running.held_out = dict(state["held_out"])
        running.declined, running.waiting = dict(state["declined"]), dict(state["waiting"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{folder.path}: holds no run between sites: {error}") from None
    if state["stage"] not in OPEN:
        running.stage = state["stage"]
    if running.stage == "ended":
        running.ledger.load(folder.ledger)
    return running
