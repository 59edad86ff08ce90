"""A run between sites, on its server: it gathers the sites, trains with them, and keeps each closed round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from manyhands.errors import MessageError, Reason, Refused
from manyhands.federation.enrolment import Enrolment
from manyhands.federation.policy import recipe_hash, recipe_text
from manyhands.federation.site_delays import REPEAT_SHARE, SiteDelays
from manyhands.links.coordinator import RoundCoordinator
from manyhands.messages.ledger import Ledger
from manyhands.messages.message import Message, encoded_size
from manyhands.methods.base import plan_of
from manyhands.runs.round import Round, State
from manyhands.runs.round_timer import RoundTimer, check_quorum
from manyhands.runs.run_folder import RunFolder
from manyhands.silos.memory import compact_heap, peak_memory, release_memory
from manyhands.subprocess_task import SubprocessTask

if TYPE_CHECKING:
    from manyhands.links.coordinator import ClosedRound
    from manyhands.messages.plan import Plan
    from manyhands.methods.server import Server
    from manyhands.runs.recipe import Recipe

SESSION_FILE = "federation.json"
Stage = Literal["gathering", "training", "exporting", "ended", "stopped", "failed"]
OPEN, OVER = frozenset({"gathering", "training"}), frozenset({"ended", "stopped", "failed"})


@dataclass
class RunSession:
    """It gathers its sites, trains with them, and gathers them again if one of them must repeat the round.

    A round with several barriers can only be repeated by all sites together. They repeat it from the newest round that
    was closed, so that the weights do not depend on when a site was lost.

    Args:
        folder: The run folder.
        recipe: The recipe of the job.
        sites: The sites of the run.
        device: Where the server computes.
        since: When the sites began to gather, in seconds of the server's clock.
        stage: How far the run is.
        why: Why the run ended early.
        ledger: The bytes of every message.
        job: The id of the job.
    """

    folder: RunFolder
    recipe: Recipe
    sites: Enrolment
    device: torch.device
    since: float
    stage: Stage = "gathering"
    why: str = ""
    ledger: Ledger = field(default_factory=Ledger)
    job: str = ""

    def __post_init__(self) -> None:
        self.method = self.recipe.method
        self.coordinator: RoundCoordinator | None = None
        self.server: Server | None = None
        self.delays = SiteDelays(self.recipe.federation.deadline, self.since)
        self._returning: set[str] = set()
        self._gather_seconds = self.recipe.federation.gather
        self._started: set[str] = set()
        self._round_untouched = True
        self._clock: RoundTimer | None = None
        self._pending: dict[str, str] = {}
        self._export: SubprocessTask[..., None] | None = None

    @cached_property
    def recipe_hash(self) -> str:
        """The hash of the recipe, by which sites approve it."""
        return recipe_hash(recipe_text(self.recipe))

    @cached_property
    def plan(self) -> Plan:
        """The method's plan; it is made when the server is, because that loads the networks."""
        return plan_of(self.method)

    @property
    def round(self) -> int:
        """The number of rounds that are closed."""
        return self.server.round if self.server else self.folder.kept

    @property
    def muted(self) -> set[str]:
        """The sites that are ignored until the next round."""
        return self.delays.muted

    @property
    def is_complete(self) -> bool:
        """Whether every site that takes part has finished."""
        if self.coordinator is None or self.server is None or self.server.round < self.method.rounds:
            return False
        return not (self.sites.roster.keys() - self.coordinator.done - self.coordinator.absent.keys())

    @property
    def must_restart_round(self) -> bool:
        """Whether a site came back that cannot continue alone; one that was left out waits for the next round."""
        ready = self._returning - self.delays.left_out
        return self.coordinator is not None and any(
            self._round_untouched or site not in self.coordinator.absent for site in ready
        )

    def write(self) -> None:
        """Write the stage and the sites to disk, for a server that restarts."""
        self.folder.write(SESSION_FILE, {"stage": self.stage, "why": self.why, "job": self.job, **self.sites.state()})

    def go_on(self, job: str) -> None:
        """Take up the run for a job, from its newest closed round, unless it has ended; sites may decide anew."""
        if self.stage in OVER - {"ended"}:
            self.stage, self.why = "gathering", ""
        self.sites.declined.clear()
        self.job = job
        self.write()

    def enrol(self, site: str, facts: Mapping[str, Any], now: float) -> Message | None:
        """Enrol a site; it is answered now if it can continue alone, and otherwise when all sites are ready.

        Raises:
            Refused: The site cannot take part.
        """
        if self.stage in OVER:
            raise Refused(Reason.NOT_NOW, f"the run is over: {self.stage} {self.why}".rstrip())
        if facts["recipe"] != self.recipe_hash:
            raise Refused(Reason.WRONG_FACTS, "it has another recipe")
        self.sites.check(site, facts["images"], self.recipe.federation.images)
        self._check_memory(site, facts["kept"])
        self.sites.add(site, facts["images"], facts["held_out"])
        if self.coordinator is None:
            return None
        if len(self.plan.barriers) > 1 and self.round < self.method.rounds:  # after the last, there is none to repeat
            self._return(site, now)
            return None
        return self._start_site(site)

    def _check_memory(self, site: str, kept: Sequence[int]) -> None:
        """Refuse a site that trained before and has lost what it kept, unless the recipe admits it."""
        if any(0 < number <= self.round for number in kept):
            return
        if all(site in done.missing for done in self.folder.rounds[: self.round]):
            return
        if self.recipe.federation.lost == "refuse":
            raise Refused(
                Reason.NOT_NOW,
                f"{site} trained before but has lost what it kept; federation.lost = 'admit' would let it continue",
            )
        self.folder.problem(f"{site} has lost what it kept, and continues like a new site")

    def _return(self, site: str, now: float) -> None:
        """Have all sites repeat the round for one that comes back, unless it has cost them too much already."""
        assert self.coordinator is not None
        self._returning.add(site)
        if why := self.delays.come_back(site, now):
            self.coordinator.drop(site, why)

    def reset_site(self, site: str) -> None:
        """Forget the open call of a site that began a new session."""
        self._pending.pop(site, None)
        if self.coordinator is None:
            self.sites.enrolled.discard(site)

    def decline(self, site: str, why: str, *, waits: bool) -> None:
        """Note that a site does not take part, no longer, or not before somebody there has approved the recipe."""
        self.sites.decline(site, why, waits=waits)
        if self.coordinator is not None and site in self._started:
            self.coordinator.drop(site, why)
        self.write()

    def finish(self, site: str) -> None:
        """Note that a site has finished its half of the method."""
        if self.coordinator is not None and site in self._started:
            self.coordinator.finish(site)

    def is_gathered(self, now: float) -> bool:
        """Whether training can begin: all sites are ready, or enough of them after the time for gathering."""
        if self.stage != "gathering" or (self.sites.awaited and now < self.since + self._gather_seconds):
            return False
        return self.sites.has_quorum(self.recipe.quorum)

    def start(self, now: float) -> dict[str, Message]:
        """Train from the newest closed round on, with the sites that are ready; return the answer to each."""
        self.sites.start()
        roster = self.sites.roster
        self.server = self.method.server(self.recipe.seed, roster)
        self.server.device = self.device
        release_memory(at_once=not self.server.trains)
        self.ledger = Ledger()
        state = self.folder.resume(roster)
        if state is not None:
            state.restore(self.server, self.ledger)
        self.coordinator = RoundCoordinator(
            self.server,
            self.plan,
            roster,
            quorum=self.recipe.quorum,
            earlier=partial(self.folder.earlier, self.method, self.recipe.seed, roster),
            late=self.delays.late,
        )
        self.delays.begin(now, self.since)
        for site in roster.keys() - self.sites.enrolled:
            self.coordinator.absent[site] = self.sites.reasons.get(site, "was not there")
        self._clock = RoundTimer(self.ledger, self.server)
        self._pending, self._returning, self._started = {}, set(), set()
        self._round_untouched, self.stage = True, "training"
        self.write()
        return {site: self._start_site(site) for site in self.sites.enrolled if site in roster}

    def restart_round(self, now: float) -> None:
        """Gather the sites again; all that take part repeat the open round."""
        assert self.coordinator is not None
        self.sites.absent = self.coordinator.absent.keys() - self._returning
        self.delays.restart_round(self._returning, now)
        federation = self.recipe.federation
        self._gather_seconds = min(federation.gather, (1 - REPEAT_SHARE) * federation.deadline)
        self.stage, self.since, self.coordinator = "gathering", now, None
        self.sites.enrolled, self._pending = set(), {}

    def is_barrier(self, message: Message) -> bool:
        """Whether the server answers this message only when all sites have sent theirs."""
        return self.coordinator is not None and message.op in self.plan.barriers

    def add_busy_time(self, seconds: float) -> None:
        """Note that the server was busy: this time makes no site late."""
        self.delays.busy += seconds

    def charge(self, spent: Mapping[str, float]) -> bool:
        """Charge each site for the time in which the server was busy with it alone."""
        for site, seconds in spent.items():
            self.add_busy_time(seconds)
            if self.coordinator is not None and site in self.sites.roster:
                self.coordinator.charge_delay(site, seconds)
                self.delays.keep_busy(site, seconds)
        return bool(spent)

    def check_deadline(self, now: float) -> None:
        """Continue without the sites that are late; time in which the server was busy does not count."""
        if self.coordinator is not None:
            self.coordinator.check_deadline(now - self.delays.busy)

    def call(self, site: str, message: Message, session: str, number: int, now: float) -> None:
        """Pass a message of the method on to the coordinator.

        Raises:
            Refused: The message is not allowed, or not now.
        """
        if self.stage == "exporting":
            raise Refused(Reason.NOT_NOW, "the last round is closed")
        if self.coordinator is None or site not in self._started:
            raise Refused(Reason.NOT_NOW, "the run waits for its sites")
        op = message.op if message.op in self.plan.operations else "refused"
        if op != "refused" and self.plan.operations[op].draws:
            raise Refused(Reason.NOT_NOW, "the server draws for nobody while it trains")
        adds = self.server is not None and not self.server.trains
        try:
            self.ledger.add(site, "up", op, encoded_size(message))
            with compact_heap() if adds else nullcontext():
                self.coordinator.submit(site, message, session, number, now - self.delays.busy)
        except MessageError as error:
            raise Refused(Reason.MALFORMED, str(error)) from None
        self._pending[site], self._round_untouched = session, False

    def answers(self) -> dict[str, Message | Refused]:
        """Return the answers that are ready, for the sites that wait for one."""
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
                answers[site] = Refused(Reason.NOT_NOW, f"the answer cannot be encoded: {error}")
            except Refused as refusal:
                answers[site] = refusal
            del self._pending[site]
        return answers

    def closed(self) -> Iterator[Round]:
        """Yield the rounds that were closed since the last call; each is on disk before any site is answered."""
        while self.coordinator is not None and self.coordinator.closed:
            yield self._keep(self.coordinator.closed.pop(0))

    def save(self) -> None:
        """Write the state after the newest closed round to disk."""
        assert self.server is not None
        self.folder.save(State.of(self.server, self.sites.roster, self.ledger, {}))

    def conclude(self) -> bool:
        """Save the final state, and write the model and the report in another process; return whether that is done.

        The server goes on answering meanwhile.
        """
        if self._export is None:
            if self.stage != "exporting":
                self.save()
                self.stop("exporting")
            server_facts = (self.sites.held_out, self.folder.problems, peak_memory())
            self._export = SubprocessTask(_export, str(self.folder.path), str(self.device), *server_facts)
        if self._export.is_done:
            self._export.result()
            return True
        return False

    def stop(self, stage: Stage, why: str = "") -> None:
        """End the training, and note why."""
        self.stage, self.why, self.coordinator = stage, why, None
        if self._export is not None:
            self._export.stop()
        self.write()

    def _start_site(self, site: str) -> Message:
        assert self.server is not None
        self._started.add(site)
        return Message("enrol", facts={"round": self.server.round, "sites": len(self.sites.enrolled)})

    def _keep(self, closed: ClosedRound) -> Round:
        assert self._clock is not None
        done = self._clock.round_of(closed, self.method.rounds)
        check_quorum(done, closed, self.recipe.quorum)
        if done.note:
            self.folder.problem(f"round {done.number + 1}: {done.note}")
        self.folder.append(done)
        self.save()
        self._clock.start()
        self._round_untouched = True
        self.delays.close_round()
        return done


def _export(path: str, device: str, held_out: dict[str, int], problems: list[str], memory: int) -> None:
    from manyhands.federation.export import export  # only this process needs the memory that its imports take

    export(RunFolder(Path(path)), device, held_out, problems, memory)
