"""The server that sites dial: one thread that takes what they say, one thing after another."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from manyhands.errors import ManyhandsError, MessageError, Reason, RecipeError, Refused, printable
from manyhands.federation.kit import ADMIN, Kit
from manyhands.federation.log import PeerLog
from manyhands.federation.plans import ADMIN_PLAN, PIECE_BYTES, SITE_PLAN
from manyhands.federation.policy import recipe_hash, recipe_text
from manyhands.federation.run_session import FILE, OPEN, OVER, RunSession, load_run_session
from manyhands.formatting import size_text
from manyhands.messages.message import MAX_HEADER_BYTES, Message, encoded_size
from manyhands.runs.recipe import parse_recipe
from manyhands.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from manyhands.federation.site_connections import ReceivedCall, SiteConnections

    Log = Callable[[str], None]

TICK = 0.2
IDLE_SECONDS = 10.0
"""Seconds after which a site that waits for a run is told that there is none."""


class FederationServer:
    """Offers one run at a time to the sites, and does what the admin says. ``log`` gets a line for people."""

    def __init__(
        self, kit: Kit, connections: SiteConnections, out: Path, device: str, log: Log, peer_log: PeerLog | None = None
    ) -> None:
        self.kit, self.connections, self.out, self.device, self.log = kit, connections, out, torch.device(device), log
        self.peer_log = peer_log or PeerLog(log)
        self.running: RunSession | None = None
        self._idle: dict[str, tuple[float, str]] = {}
        self._admin_handlers: dict[str, Callable[..., Message]] = {
            "submit": self._submit,
            "status": self._status,
            "stop": self._stop,
            "files": self._files,
            "file": self._file,
        }
        for file in sorted(out.glob(f"*/{FILE}"), key=lambda file: file.stat().st_mtime):
            try:
                self.running = load_run_session(RunFolder(file.parent), self.device, time.monotonic())
            except ManyhandsError as error:
                log(str(error))
        if (resumed := self.running) is not None and resumed.stage not in OVER:
            log(f"goes on with {resumed.folder.path}: {resumed.round} of {resumed.method.rounds} rounds are closed")

    def step(self) -> None:
        """Take a call that came, or let the server work; then say what there is to say."""
        called = self.connections.next(0 if self._end_run_on_error(self._work) else TICK)
        if called is not None:
            self._handle_call(called)
        self._charge()
        self._end_run_on_error(self._advance)
        self._answer_idle_sites(time.monotonic())

    def _work(self, running: RunSession) -> bool:
        return running.coordinator is not None and running.coordinator.train_step()

    def _handle_call(self, called: ReceivedCall) -> None:
        answer: Message | Refused | None
        began = time.perf_counter()
        try:
            answer = self._handle(called)
        except Refused as refusal:
            answer = refusal
        except RecipeError as error:
            answer = Refused(Reason.NOT_NOW, str(error))
        except Exception as error:
            is_admin = called.peer == ADMIN
            answer = Refused(Reason.NOT_NOW, str(error) if is_admin else "the run has ended")
            if not is_admin:
                self._fail_run(error)
        self._answer(called.peer, answer)
        seconds, running = time.perf_counter() - began, self.running
        if answer is None and running is not None and running.is_barrier(called.message):
            running.add_busy_time(seconds)
        else:
            self.connections.spent[called.peer] += seconds

    def _charge(self) -> None:
        """What a peer has taken of the server's time is its own loss."""
        spent, self.connections.spent = self.connections.spent, defaultdict(float)
        self._end_run_on_error(lambda running: running.charge(spent))
        self.connections.muted = frozenset(self.running.muted if self.running is not None else ())

    def _end_run_on_error(self, act: Callable[[RunSession], bool]) -> bool:
        """Whatever ends a run ends it by name, and the server goes on."""
        if self.running is None or self.running.stage in OVER:
            return False
        try:
            return act(self.running)
        except Exception as error:
            self._fail_run(error)
            return False

    def _fail_run(self, error: Exception) -> None:
        if self.running is not None and self.running.stage not in OVER:
            words = str(error) if isinstance(error, ManyhandsError) else f"{type(error).__name__}: {error}"
            self._end_run(self.running, "failed", words)

    def _answer(self, peer: str, answer: Message | Refused | None) -> None:
        """Answer, whatever is to be said: what cannot be told is a refusal to this one peer."""
        if isinstance(answer, Refused) and peer != ADMIN:
            self.peer_log(peer, f"refused: {answer}")
        if answer is None:
            return
        try:
            self.connections.answer(peer, answer)
        except Exception as error:
            self.peer_log(peer, f"its answer cannot be told: {printable(str(error))}")
            self.connections.answer(peer, Refused(Reason.NOT_NOW, "what was to be answered cannot be told"))

    def _handle(self, called: ReceivedCall) -> Message | Refused | None:
        peer, session, number, message = called
        if peer == ADMIN:
            ADMIN_PLAN.check(message, "up")
            return self._admin_handlers[message.op](**message.facts)
        running, now = self.running, time.monotonic()
        if message.op not in SITE_PLAN.operations:
            if running is None:
                raise Refused(Reason.NOT_NOW, "there is no run")
            return running.call(peer, message, session, number, now)
        SITE_PLAN.check(message, "up")
        facts = dict(message.facts)
        if message.op == "hello":
            self._idle[peer] = (now, facts["declined"])
            if running is not None:
                running.reset_site(peer)
            return None
        if running is None or running.folder.path.name != facts["run"]:
            raise Refused(Reason.NOT_NOW, f"there is no run {facts['run']!r} now")
        if peer not in running.expected:
            raise Refused(Reason.UNKNOWN_SILO, f"{peer} was not asked to take part in {facts['run']}")
        if message.op == "enrol":
            return running.enrol(peer, facts, now)
        if message.op == "ended":
            running.finish(peer)
        else:
            running.decline(peer, printable(facts["why"]), waits=facts["waits"])
            self.peer_log(peer, printable(facts["why"]))
        return Message(message.op)

    def _advance(self, running: RunSession) -> bool:
        """All that time and what was said have brought about."""
        now = time.monotonic()
        if running.is_gathered(now):
            begun = running.start(now)
            self.connections.allow(running.roster, running.plan.bounds("up"))
            for site, message in begun.items():
                self._answer(site, message)
            self.log(f"{running.folder.path.name}: {len(running.enrolled)} sites train from round {running.round + 1}")
        running.check_deadline(now)
        for done in running.closed():
            gone = "".join(f"; {site} is missing: {why}" for site, why in done.missing.items())
            gone += f"; {done.note}" * bool(done.note)
            self.log(
                f"round {done.number + 1}/{done.rounds}: loss {done.loss:.4f}, {done.seconds:.1f} s, "
                f"{size_text(done.bytes_up)} up, {size_text(done.bytes_down)} down{gone}"
            )
        for site, answer in running.answers().items():
            self._answer(site, answer)
        if running.must_restart_round:
            self.log("a site came back: all begin the round again")
            running.restart_round(now)
            self._release_sites(running)
        elif (running.is_complete or running.stage == "exporting") and running.conclude():
            self._end_run(running, "ended")
        return True

    def _end_run(self, running: RunSession, stage: Any, why: str = "") -> None:
        running.stop(stage, why)
        self.log(f"{running.folder.path}: {stage}{f': {why}' if why else ''}")
        self._release_sites(running)

    def _release_sites(self, running: RunSession) -> None:
        self.connections.forget(running.roster or running.expected)
        self.connections.allow()

    def _answer_idle_sites(self, now: float) -> None:
        """Tell sites that ask for a run which there is."""
        running = self.running
        for site, (since, declined) in list(self._idle.items()):
            name = running.folder.path.name if running and running.stage in OPEN else ""
            through = running is not None and running.coordinator is not None and site in running.coordinator.done
            wanted = running is not None and site in running.expected and name != declined and not through
            if name and wanted:
                assert running is not None
                self._answer(site, running.offer)
            elif now > since + IDLE_SECONDS:
                self._answer(site, Message("hello", facts={"run": "", "recipe": ""}))
            else:
                continue
            del self._idle[site]

    def _submit(self, recipe: dict[str, Any], sites: Sequence[str]) -> Message:
        if self.running is not None and self.running.stage not in OVER:
            raise Refused(Reason.NOT_NOW, f"{self.running.folder.path.name} is not over; stop it first")
        submitted, known = parse_recipe(recipe, "recipe"), self.kit.about.sites
        if odd := [site for site in sites if site not in known]:
            raise Refused(Reason.UNKNOWN_SILO, f"{odd[0]!r} is not one of {', '.join(known)}")
        if submitted.method.pools:
            raise Refused(Reason.NOT_NOW, f"method {submitted.method.kind!r} needs all images in one place")
        name = _free_name(self.out, submitted.name)
        folder, text = RunFolder(self.out / name), recipe_text(submitted)
        running = RunSession(folder, submitted, tuple(sites) or known, self.device, time.monotonic())
        _check_offer(running.offer)
        with folder.open(submitted.resolved(), resume=False):
            running.write()
        self.running = running
        self.log(f"{name}: was submitted, {recipe_hash(text)}")
        return Message("submit", facts={"run": name, "hash": recipe_hash(text)})

    def _status(self) -> Message:
        running, sites = self.running, {}
        for site in self.kit.about.sites:
            sites[site] = "connected" if site in self.connections.connected else "not connected"
            if running and (why := (running.declined | running.waiting).get(site)):
                sites[site] += f", does not take part: {why}"
            elif running and running.coordinator and site in running.coordinator.absent:
                sites[site] += f", missing: {running.coordinator.absent[site]}"
            elif running and site in running.enrolled and running.stage not in OVER:
                sites[site] += ", takes part"
        run = running and {
            "run": running.folder.path.name, "stage": running.stage, "why": running.why, "round": running.round,
            "rounds": running.method.rounds, "bytes_up": running.ledger.bytes("up"),
            "bytes_down": running.ledger.bytes("down"), "hash": recipe_hash(recipe_text(running.recipe)),
        }  # fmt: skip
        return Message("status", facts={"sites": sites, "run": run or {}})

    def _stop(self, run: str) -> Message:
        running = self._run_session(run)
        if running.stage in OVER:
            raise Refused(Reason.NOT_NOW, f"{running.folder.path.name} is over: {running.stage}")
        self._end_run(running, "stopped", "by the admin")
        return Message("stop", facts={"run": running.folder.path.name})

    def _files(self, run: str) -> Message:
        root = self._run_session(run).folder.path
        paths = {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}
        shown = {name: path.stat().st_size for name, path in paths.items() if not re.search(r"(^|/)\.", name)}
        return Message("files", facts={"files": shown})

    def _file(self, run: str, path: str, at: int) -> Message:
        root = self._run_session(run).folder.path
        if path not in self._files(run).facts["files"]:
            raise Refused(Reason.WRONG_FACTS, f"{path!r} is no file of {root.name}")
        with (root / path).open("rb") as file:
            file.seek(at)
            raw = file.read(PIECE_BYTES)
        return Message("file", {"bytes": torch.frombuffer(bytearray(raw), dtype=torch.uint8)} if raw else {})

    def _run_session(self, run: str) -> RunSession:
        """The run of this name; the newest where none is named."""
        if self.running is not None and run in ("", self.running.folder.path.name):
            return self.running
        if run and "/" not in run and (self.out / run / FILE).exists():
            return load_run_session(RunFolder(self.out / run), self.device, time.monotonic())
        raise Refused(Reason.WRONG_FACTS, f"there is no run {run!r}" if run else "there is no run yet")


def _check_offer(offer: Message) -> None:
    """Raise where sites could not be told of a run."""
    try:
        SITE_PLAN.check(offer, "down")
        encoded_size(offer)
    except (Refused, MessageError) as error:
        size = len(offer.facts["recipe"].encode())
        raise RecipeError(f"recipe: has {size:,} bytes when every field is told, about {MAX_HEADER_BYTES:,} are the "
                          f"most: {error}") from None  # fmt: skip


def _free_name(out: Path, name: str) -> str:
    """The name of a folder that is not there yet."""
    taken = {path.name for path in out.glob("*")}
    candidates = (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3)))
    return next(candidate for candidate in candidates if candidate not in taken)
