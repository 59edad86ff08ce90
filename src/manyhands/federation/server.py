"""The server of a federation: one thread that handles the calls of the sites and the admin, one after another."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from manyhands.errors import ManyhandsError, MessageError, Reason, RecipeError, Refused, printable
from manyhands.federation.enrolment import Enrolment
from manyhands.federation.kit import ADMIN
from manyhands.federation.log import PeerLog
from manyhands.federation.plans import ADMIN_PLAN, SITE_PLAN
from manyhands.federation.policy import check_between_sites, recipe_hash, recipe_text
from manyhands.federation.run_files import file_sizes, read_piece
from manyhands.federation.run_session import OPEN, OVER, SESSION_FILE, RunSession, load_run_session
from manyhands.federation.status import run_state, site_states
from manyhands.formatting import size_text
from manyhands.messages.message import MAX_HEADER_BYTES, Message, encoded_size
from manyhands.runs.recipe_file import parse_recipe
from manyhands.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from manyhands.federation.run_session import Stage
    from manyhands.federation.site_connections import ReceivedCall, SiteConnections
    from manyhands.runs.round import Round

    Log = Callable[[str], None]
    Answer = Message | Refused | None

TICK = 0.2
"""Seconds that the server waits for a call when it has nothing else to do."""
IDLE_SECONDS = 10.0
"""Seconds after which a site that asks for a run is answered that there is none."""


class FederationServer:
    """Offers one run at a time to the sites, and handles what the admin asks for.

    Args:
        sites: The names of the sites.
        connections: The connections of the sites and the admin.
        out: The folder of the run folders.
        device: Where the server computes.
        log: Takes a line for people.
        peer_log: Takes a line that a site brings about; it limits how many.
    """

    def __init__(
        self, sites: Sequence[str], connections: SiteConnections, *, out: Path, device: str, log: Log,
        peer_log: PeerLog | None = None,
    ) -> None:  # fmt: skip
        self.sites, self.connections, self.out, self.log = tuple(sites), connections, out, log
        self.device = torch.device(device)
        self.peer_log = peer_log or PeerLog(log)
        self.run_session: RunSession | None = None
        self._idle: dict[str, tuple[float, str]] = {}
        self._admin_handlers: dict[str, Callable[..., Message]] = {
            "submit": self._submit,
            "status": self._status,
            "stop": self._stop,
            "files": self._files,
            "file": self._file,
        }
        self._site_handlers: dict[str, Callable[[RunSession, str, dict[str, Any]], Message | None]] = {
            "enrol": self._enrol,
            "decline": self._decline,
            "ended": self._ended,
        }
        for file in sorted(out.glob(f"*/{SESSION_FILE}"), key=lambda file: file.stat().st_mtime):
            try:
                self.run_session = load_run_session(RunFolder(file.parent), self.device, time.monotonic())
            except ManyhandsError as error:
                log(str(error))
        if (resumed := self.run_session) is not None and resumed.stage not in OVER:
            log(f"{resumed.folder.path}: continues after round {resumed.round} of {resumed.method.rounds}")

    def step(self) -> None:
        """Train, or else wait for a call and handle it; then send the answers that are ready."""
        call = self.connections.next(0 if self._end_run_on_error(self._train_step) else TICK)
        if call is not None:
            self._handle_call(call)
        self._charge()
        self._end_run_on_error(self._advance)
        self._answer_idle_sites(time.monotonic())

    def _train_step(self, session: RunSession) -> bool:
        return session.coordinator is not None and session.coordinator.train_step()

    def _handle_call(self, call: ReceivedCall) -> None:
        answer: Answer
        began = time.perf_counter()
        try:
            answer = self._handle(call)
        except Refused as refusal:
            answer = refusal
        except RecipeError as error:
            answer = Refused(Reason.NOT_NOW, str(error))
        except Exception as error:
            is_admin = call.peer == ADMIN
            answer = Refused(Reason.NOT_NOW, str(error) if is_admin else "the run has ended")
            if not is_admin:
                self._fail_run(error)
        self._answer(call.peer, answer)
        seconds, session = time.perf_counter() - began, self.run_session
        if answer is None and session is not None and session.is_barrier(call.message):
            session.add_busy_time(seconds)
        else:
            self.connections.spent[call.peer] += seconds

    def _charge(self) -> None:
        """Charge each site for the time that the server has spent on it."""
        spent, self.connections.spent = self.connections.spent, defaultdict(float)
        self._end_run_on_error(lambda session: session.charge(spent))
        self.connections.muted = frozenset(self.run_session.muted if self.run_session is not None else ())

    def _end_run_on_error(self, act: Callable[[RunSession], bool]) -> bool:
        """Do something for the run, if there is one; an error ends the run but not the server."""
        if self.run_session is None or self.run_session.stage in OVER:
            return False
        try:
            return act(self.run_session)
        except Exception as error:
            self._fail_run(error)
            return False

    def _fail_run(self, error: Exception) -> None:
        if self.run_session is not None and self.run_session.stage not in OVER:
            why = str(error) if isinstance(error, ManyhandsError) else f"{type(error).__name__}: {error}"
            self._end_run(self.run_session, "failed", why)

    def _answer(self, peer: str, answer: Answer) -> None:
        """Answer a peer; an answer that cannot be sent becomes a refusal to this peer alone."""
        if isinstance(answer, Refused) and peer != ADMIN:
            self.peer_log(peer, f"refused: {answer}")
        if answer is None:
            return
        try:
            self.connections.answer(peer, answer)
        except Exception as error:
            self.peer_log(peer, f"the answer cannot be sent: {printable(str(error))}")
            self.connections.answer(peer, Refused(Reason.NOT_NOW, "the answer cannot be sent"))

    def _handle(self, call: ReceivedCall) -> Answer:
        peer, message = call.peer, call.message
        if peer == ADMIN:
            ADMIN_PLAN.check(message, "up")
            return self._admin_handlers[message.op](**message.facts)
        if message.op not in SITE_PLAN.operations:
            if self.run_session is None:
                raise Refused(Reason.NOT_NOW, "there is no run")
            self.run_session.call(peer, message, call.session, call.number, time.monotonic())
            return None
        SITE_PLAN.check(message, "up")
        facts = dict(message.facts)
        if message.op == "hello":
            self._hello(peer, facts["declined"])
            return None
        session = self.run_session
        if session is None or session.folder.path.name != facts["run"]:
            raise Refused(Reason.NOT_NOW, f"there is no run {facts['run']!r} now")
        if peer not in session.sites.expected:
            raise Refused(Reason.UNKNOWN_SILO, f"{peer} was not asked to take part in {facts['run']}")
        return self._site_handlers[message.op](session, peer, facts)

    def _hello(self, site: str, declined: str) -> None:
        """Note that a site asks for a run; it is answered when there is one, or after a while."""
        self._idle[site] = (time.monotonic(), declined)
        if self.run_session is not None:
            self.run_session.reset_site(site)

    def _enrol(self, session: RunSession, site: str, facts: dict[str, Any]) -> Message | None:
        return session.enrol(site, facts, time.monotonic())

    def _decline(self, session: RunSession, site: str, facts: dict[str, Any]) -> Message:
        why = printable(facts["why"])
        session.decline(site, why, waits=facts["waits"])
        self.peer_log(site, why)
        return Message("decline")

    def _ended(self, session: RunSession, site: str, _facts: dict[str, Any]) -> Message:
        session.finish(site)
        return Message("ended")

    def _advance(self, session: RunSession) -> bool:
        """Do what has become due: begin training, close rounds, send answers, repeat a round, end the run."""
        now = time.monotonic()
        if session.is_gathered(now):
            self._start(session, now)
        session.check_deadline(now)
        for done in session.closed():
            self.log(_round_line(done))
        for site, answer in session.answers().items():
            self._answer(site, answer)
        if session.must_restart_round:
            self.log("a site came back: all sites repeat the round")
            session.restart_round(now)
            self._release_sites(session)
        elif (session.is_complete or session.stage == "exporting") and session.conclude():
            self._end_run(session, "ended")
        return True

    def _start(self, session: RunSession, now: float) -> None:
        answers = session.start(now)
        self.connections.allow(session.sites.roster, session.plan.bounds("up"))
        for site, answer in answers.items():
            self._answer(site, answer)
        count = len(session.sites.enrolled)
        self.log(f"{session.folder.path.name}: {count} sites train from round {session.round + 1}")

    def _end_run(self, session: RunSession, stage: Stage, why: str = "") -> None:
        session.stop(stage, why)
        self.log(f"{session.folder.path}: {stage}{f': {why}' if why else ''}")
        self._release_sites(session)

    def _release_sites(self, session: RunSession) -> None:
        self.connections.forget(session.sites.invited)
        self.connections.allow()

    def _answer_idle_sites(self, now: float) -> None:
        """Offer the run to the sites that ask for one; after a while, answer that there is none."""
        for site, (since, declined) in list(self._idle.items()):
            if (session := self.run_session) is not None and self._is_offered(session, site, declined):
                self._answer(site, session.offer)
            elif now > since + IDLE_SECONDS:
                self._answer(site, Message("hello", facts={"run": "", "recipe": ""}))
            else:
                continue
            del self._idle[site]

    def _is_offered(self, session: RunSession, site: str, declined: str) -> bool:
        has_finished = session.coordinator is not None and site in session.coordinator.done
        is_new = session.stage in OPEN and session.folder.path.name != declined
        return is_new and site in session.sites.expected and not has_finished

    def open_run(self, recipe: dict[str, Any], sites: Sequence[str] = ()) -> RunSession:
        """Begin a run: from now on it is offered to these sites, or to all.

        Raises:
            Refused: There is a run, or no such site.
            RecipeError: The recipe is not valid, or cannot be trained between sites.
        """
        if self.run_session is not None and self.run_session.stage not in OVER:
            raise Refused(Reason.NOT_NOW, f"{self.run_session.folder.path.name} is not over; stop it first")
        submitted, known_sites = parse_recipe(recipe, "recipe"), self.sites
        if unknown := [site for site in sites if site not in known_sites]:
            raise Refused(Reason.UNKNOWN_SILO, f"{unknown[0]!r} is not one of {', '.join(known_sites)}")
        check_between_sites(submitted)
        folder, expected = RunFolder(self.out / _free_name(self.out, submitted.name)), tuple(sites) or known_sites
        session = RunSession(folder, submitted, Enrolment(expected), self.device, time.monotonic())
        _check_offer(session.offer)
        with folder.open(submitted.resolved(), resume=False):
            session.write()
        self.run_session = session
        self.log(f"{folder.path.name}: was submitted; the hash of its recipe is {_hash_of(session)}")
        return session

    def _submit(self, recipe: dict[str, Any], sites: Sequence[str]) -> Message:
        session = self.open_run(recipe, sites)
        return Message("submit", facts={"run": session.folder.path.name, "hash": _hash_of(session)})

    def _status(self) -> Message:
        states = site_states(self.sites, self.connections.connected, self.run_session)
        run = run_state(self.run_session) if self.run_session else {}
        return Message("status", facts={"sites": states, "run": run})

    def _stop(self, run: str) -> Message:
        session = self._find_session(run)
        if session.stage in OVER:
            raise Refused(Reason.NOT_NOW, f"{session.folder.path.name} is over: {session.stage}")
        self._end_run(session, "stopped", "by the admin")
        return Message("stop", facts={"run": session.folder.path.name})

    def _files(self, run: str) -> Message:
        return Message("files", facts={"files": file_sizes(self._find_session(run).folder.path)})

    def _file(self, run: str, path: str, at: int) -> Message:
        return read_piece(self._find_session(run).folder.path, path, at)

    def _find_session(self, run: str) -> RunSession:
        """Return the run of this name; "" means the newest."""
        if self.run_session is not None and run in ("", self.run_session.folder.path.name):
            return self.run_session
        if run and "/" not in run and (self.out / run / SESSION_FILE).exists():
            return load_run_session(RunFolder(self.out / run), self.device, time.monotonic())
        raise Refused(Reason.WRONG_FACTS, f"there is no run {run!r}" if run else "there is no run yet")


def _round_line(done: Round) -> str:
    notes = [f"{site} is missing: {why}" for site, why in done.missing.items()] + [done.note] * bool(done.note)
    return "; ".join([
        f"round {done.number + 1}/{done.rounds}: loss {done.loss:.4f}, {done.seconds:.1f} s, "
        f"{size_text(done.bytes_up)} up, {size_text(done.bytes_down)} down",
        *notes,
    ])  # fmt: skip


def _hash_of(session: RunSession) -> str:
    return recipe_hash(recipe_text(session.recipe))


def _check_offer(offer: Message) -> None:
    """Raise ``RecipeError`` if the recipe is too large to be offered to sites."""
    try:
        SITE_PLAN.check(offer, "down")
        encoded_size(offer)
    except (Refused, MessageError) as error:
        size = len(offer.facts["recipe"].encode())
        raise RecipeError(
            f"recipe: has {size:,} bytes with every field written out; about {MAX_HEADER_BYTES:,} are allowed: {error}"
        ) from None


def _free_name(out: Path, name: str) -> str:
    """Return the name for a new folder: this name, with a number if it is taken."""
    taken = {path.name for path in out.glob("*")}
    candidates = (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3)))
    return next(candidate for candidate in candidates if candidate not in taken)
