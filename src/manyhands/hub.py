"""The server's side of any link: who is there, what may be said, who is awaited, and what was answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from manyhands.errors import QuorumLost, Reason, Refused

if TYPE_CHECKING:
    from manyhands.message import Message
    from manyhands.methods.method import Server
    from manyhands.plan import Plan


@dataclass(frozen=True)
class Closed:
    """A barrier that ended a round: what the silos said beside their tensors, and who was missing and why."""

    round: int
    facts: Mapping[str, Mapping[str, object]]
    missing: Mapping[str, str]


@dataclass
class _Session:
    """What the hub remembers of one silo: its newest call and the answer to it."""

    name: str = ""
    sequence: int = 0
    reply: Message | None = None
    waiting: Message | None = None
    waits_for: str = ""
    folded: bool = False


@dataclass
class Hub:
    """Turns calls into ``on`` and ``on_group``. It has no clock and no thread: a link brings its own.

    ``roster`` says how many images each silo enrolled. A barrier fires when every silo that is not away has called;
    ``expire`` leaves out those who have not called by the deadline, and ``quorum`` is the least number to go on with.
    """

    server: Server
    plan: Plan
    roster: Mapping[str, int]
    quorum: int = 1
    deadline: float = 600.0
    closed: list[Closed] = field(default_factory=list)
    away: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    refusals: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sessions = {name: _Session() for name in sorted(self.roster)}
        self._opened: float | None = None

    def submit(self, silo: str, message: Message, session: str = "", sequence: int = 0, now: float = 0.0) -> None:
        """Take a call; the answer, when there is one, is got with ``collect``. A resend is never applied twice."""
        state = self._session(silo)
        if session == state.name and sequence and sequence == state.sequence:
            return
        if state.waiting is not None and message.op == state.waiting.op and session != state.waits_for:
            state.name, state.sequence, state.reply = session, sequence, None  # sent anew after a restart: one stands
            return
        try:
            self._check(silo, state, message, session, sequence)
        except Refused as refusal:
            self.refusals[silo] = str(refusal)
            raise
        self.away.pop(silo, None)
        state.name, state.sequence, state.reply = session, sequence, None
        if not self.plan.operations[message.op].group:
            state.reply = self.server.on(silo, message)
            return
        state.waiting, state.waits_for = message, session
        self._opened = now if self._opened is None else self._opened
        self._fold_in_order()
        self._fire_when_complete()

    def collect(self, silo: str) -> Message | None:
        """The answer to the silo's newest call, or None while it waits at a barrier."""
        return self._session(silo).reply

    def expire(self, now: float) -> None:
        """Close a barrier that is past its deadline without those who are silent."""
        if self._opened is None or now < self._opened + self.deadline:
            return
        for silo, state in self._sessions.items():
            if state.waiting is None and silo not in self.away:
                self.away[silo] = f"silent at the deadline of {self.deadline:g} s"
        self._fire_when_complete()

    def leave(self, silo: str, reason: str) -> None:
        """Go on without a silo, until it calls again."""
        self.away[silo] = reason
        self._fire_when_complete()

    def finish(self, silo: str) -> None:
        """A silo has ended as it should, and is awaited no more."""
        self.done.add(silo)

    def _session(self, silo: str) -> _Session:
        if silo not in self._sessions:
            raise Refused(Reason.UNKNOWN_SILO, f"{silo!r} is not enrolled")
        return self._sessions[silo]

    def _check(self, silo: str, state: _Session, message: Message, session: str, sequence: int) -> None:
        waits = state.waiting is not None and session == state.waits_for
        if waits or (session == state.name and sequence and sequence != state.sequence + 1):
            raise Refused(Reason.OUT_OF_SEQUENCE, f"call {sequence} came after call {state.sequence}")
        self.plan.check(message, "up")
        images = message.facts.get("images", self.roster[silo])
        if images != self.roster[silo]:
            raise Refused(Reason.WRONG_WEIGHT, f"says {images} images, enrolled {self.roster[silo]}")
        if message.facts.get("round", self.server.round) != self.server.round:
            raise Refused(Reason.STALE_ROUND, f"is of round {message.facts['round']}, this is {self.server.round}")

    def _present(self) -> dict[str, _Session]:
        """Those who are awaited, and those who have called: a call stands even if its silo has gone since."""
        gone = self.away.keys() | self.done
        return {name: state for name, state in self._sessions.items() if state.waiting or name not in gone}

    def _fold_in_order(self) -> None:
        for silo, state in self._present().items():
            if state.waiting is None:
                return
            if not state.folded:
                state.waiting, state.folded = self.server.fold(silo, state.waiting), True

    def _fire_when_complete(self) -> None:
        present = self._present()
        if len(present) < min(self.quorum, len(self._sessions) - len(self.done)):
            gone = "; ".join(f"{silo}: {why}" for silo, why in sorted(self.away.items()))
            raise QuorumLost(f"{len(present)} silos are left, the recipe asks for {self.quorum} ({gone})")
        self._fold_in_order()
        waiting = {silo: state.waiting for silo, state in present.items() if state.waiting is not None}
        if waiting and len(waiting) == len(present):
            self._fire(waiting)

    def _fire(self, waiting: Mapping[str, Message]) -> None:
        self._opened = None
        for silo in waiting:
            self._sessions[silo].waiting, self._sessions[silo].folded = None, False
        for op in sorted({message.op for message in waiting.values()}):
            group = {silo: message for silo, message in waiting.items() if message.op == op}
            number = self.server.round
            for silo, reply in self.server.on_group(op, group).items():
                self._sessions[silo].reply = reply
            if self.plan.operations[op].closes_round:
                facts = {silo: message.facts for silo, message in group.items()}
                self.closed.append(Closed(number, facts, {**self.away, **self.refusals}))
                self.refusals = {}
