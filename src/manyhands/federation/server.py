"""The server of a run between sites: one thread that handles the calls of the sites, one after another."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from manyhands.errors import ManyhandsError, Reason, Refused, printable
from manyhands.federation.log import PeerLog
from manyhands.federation.plans import SITE_PLAN
from manyhands.federation.run_session import OVER
from manyhands.federation.status import run_state, site_states
from manyhands.formatting import size_text
from manyhands.messages.message import Message

if TYPE_CHECKING:
    from manyhands.federation.run_session import RunSession, Stage
    from manyhands.federation.site_connections import ReceivedCall, SiteConnections
    from manyhands.runs.round import Round

    Log = Callable[[str], None]
    Answer = Message | Refused | None

TICK = 0.2
"""Seconds that the server waits for a call when it has nothing else to do."""


class FederationServer:
    """Serves a run: gathers its sites, and trains with them.

    Args:
        session: The run.
        connections: The connections of the sites.
        log: Takes a line for people.
        peer_log: Takes a line that a site brings about; it limits how many.
        on_round: Takes each round that was closed.
    """

    def __init__(
        self, session: RunSession, connections: SiteConnections, log: Log, peer_log: PeerLog | None = None,
        on_round: Callable[[Round], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.session, self.connections, self.log, self._on_round = session, connections, log, on_round
        self.peer_log = peer_log or PeerLog(log)
        self._returns: dict[str, float] = {}
        self._handlers: dict[str, Callable[[str, dict[str, Any]], Message | None]] = {
            "enrol": self._enrol,
            "decline": self._decline,
            "ended": self._ended,
        }

    def step(self) -> None:
        """Train, or else wait for a call and handle it; then send the answers that are ready."""
        call = self.connections.next(0 if self._end_run_on_error(self._train_step) else TICK)
        if call is not None:
            self._handle_call(call)
        self._charge()
        self._end_run_on_error(self._advance)

    def status(self) -> dict[str, Any]:
        """Return how the run and its sites stand."""
        return {"run": run_state(self.session), "sites": site_states(self.session, self._returns)}

    def _train_step(self) -> bool:
        coordinator = self.session.coordinator
        return coordinator is not None and coordinator.train_step()

    def _handle_call(self, call: ReceivedCall) -> None:
        answer: Answer
        began = time.perf_counter()
        try:
            answer = self._handle(call)
        except Refused as refusal:
            answer = refusal
        except Exception as error:
            answer = Refused(Reason.NOT_NOW, "the run has ended")
            self._fail_run(error)
        self._answer(call.peer, answer)
        seconds = time.perf_counter() - began
        if answer is None and self.session.is_barrier(call.message):
            self.session.add_busy_time(seconds)
        else:
            self.connections.spent[call.peer] += seconds

    def _charge(self) -> None:
        """Charge each site for the time that the server has spent on it."""
        spent, self.connections.spent = self.connections.spent, defaultdict(float)
        self._end_run_on_error(lambda: self.session.charge(spent))
        self.connections.muted = frozenset(self.session.muted)

    def _end_run_on_error(self, act: Callable[[], bool]) -> bool:
        """Do something for the run unless it is over; an error ends the run."""
        if self.session.stage in OVER:
            return False
        try:
            return act()
        except Exception as error:
            self._fail_run(error)
            return False

    def _fail_run(self, error: Exception) -> None:
        if self.session.stage not in OVER:
            why = str(error) if isinstance(error, ManyhandsError) else f"{type(error).__name__}: {error}"
            self.end_run("failed", why)

    def _answer(self, site: str, answer: Answer) -> None:
        """Answer a site; an answer that cannot be sent becomes a refusal to this site alone."""
        if isinstance(answer, Refused):
            self.peer_log(site, f"refused: {answer}")
        if answer is None:
            return
        try:
            self.connections.answer(site, answer)
        except Exception as error:
            self.peer_log(site, f"the answer cannot be sent: {printable(str(error))}")
            self.connections.answer(site, Refused(Reason.NOT_NOW, "the answer cannot be sent"))

    def _handle(self, call: ReceivedCall) -> Answer:
        site, message = call.peer, call.message
        if message.op not in SITE_PLAN.operations:
            self.session.call(site, message, call.session, call.number, time.monotonic())
            return None
        SITE_PLAN.check(message, "up")
        if site not in self.session.sites.expected:
            raise Refused(Reason.UNKNOWN_SILO, f"{site} was not asked to take part")
        return self._handlers[message.op](site, dict(message.facts))

    def _enrol(self, site: str, facts: dict[str, Any]) -> Message | None:
        if self.session.coordinator is not None and site in self.session.sites.roster:
            self._returns[site] = time.time()
            self.peer_log(site, "came back")
        self.session.reset_site(site)
        return self.session.enrol(site, facts, time.monotonic())

    def _decline(self, site: str, facts: dict[str, Any]) -> Message:
        why = printable(facts["why"])
        self.session.decline(site, why, waits=facts["waits"])
        self.peer_log(site, why)
        return Message("decline")

    def _ended(self, site: str, _facts: dict[str, Any]) -> Message:
        self.session.finish(site)
        return Message("ended")

    def _advance(self) -> bool:
        """Do what has become due: begin training, close rounds, send answers, repeat a round, end the run."""
        now, session = time.monotonic(), self.session
        if session.is_gathered(now):
            self._start(now)
        session.check_deadline(now)
        for done in session.closed():
            self.log(_round_line(done))
            self._on_round(done)
        for site, answer in session.answers().items():
            self._answer(site, answer)
        if session.must_restart_round:
            self.log("a site came back: all sites repeat the round")
            session.restart_round(now)
            self._release_sites()
        elif (session.is_complete or session.stage == "exporting") and session.conclude():
            self.end_run("ended")
        return True

    def _start(self, now: float) -> None:
        session = self.session
        answers = session.start(now)
        self.connections.allow(session.sites.roster, session.plan.bounds("up"))
        for site, answer in answers.items():
            self._answer(site, answer)
        count = len(session.sites.enrolled)
        self.log(f"{session.folder.path.name}: {count} sites train from round {session.round + 1}")

    def end_run(self, stage: Stage, why: str = "") -> None:
        """End the run, and tell its sites."""
        self.session.stop(stage, why)
        self.log(f"{self.session.folder.path.name}: {stage}{f': {why}' if why else ''}")
        self._release_sites()

    def _release_sites(self) -> None:
        self.connections.forget(self.session.sites.invited)
        self.connections.allow()


def _round_line(done: Round) -> str:
    notes = [f"{site} is missing: {why}" for site, why in done.missing.items()] + [done.note] * bool(done.note)
    return "; ".join([
        f"round {done.number + 1}/{done.rounds}: loss {done.loss:.4f}, {done.seconds:.1f} s, "
        f"{size_text(done.bytes_up)} up, {size_text(done.bytes_down)} down",
        *notes,
    ])  # fmt: skip
