"""The server's side of any link: who is there, what may be said, who is awaited, and what was answered."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from manyhands.errors import MessageError, QuorumLost, Reason, Refused
from manyhands.messages.operation import RESTING

if TYPE_CHECKING:
    from manyhands.messages.message import Message
    from manyhands.messages.plan import Plan
    from manyhands.methods.base import Server
    from manyhands.tensors import Tensors

T = TypeVar("T")
FOREIGN_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MessageError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What code may come to that is given values which nobody thought of."""


@dataclass(frozen=True)
class ClosedRound:
    """A barrier that ended a round: what the silos said beside their tensors, and who was missing and why.

    ``note`` says so where the server went back to earlier weights.
    """

    round: int
    facts: Mapping[str, Mapping[str, object]]
    missing: Mapping[str, str]
    note: str = ""


@dataclass
class _SiloState:
    """What the hub remembers of one silo: its newest call, and the answer or the refusal that it got."""

    session: str = ""
    sequence: int = 0
    reply: Message | None = None
    refusal: Refused | None = None
    waiting: Message | None = None
    waits_in: str = ""
    folded: bool = False
    taken_in: bool = False
    came: float = 0.0
    retired: deque[str] = field(default_factory=lambda: deque(maxlen=64))

    def is_resend(self, session: str, sequence: int) -> bool:
        return session == self.session and sequence > 0 and sequence == self.sequence

    def check_order(self, session: str, sequence: int) -> None:
        """A session counts its calls 1, 2, 3; it ends for good when another one begins. 0 stands for no count."""
        follows = session != self.session or sequence in (0, self.sequence + 1)
        waits = self.waiting is not None and session == self.waits_in
        if session in self.retired or not follows or waits:
            raise Refused(Reason.OUT_OF_SEQUENCE, f"call {sequence} of session {session!r} came after {self.sequence}")

    def take(self, session: str, sequence: int) -> None:
        if session != self.session:
            self.retired.append(self.session)
        self.session, self.sequence, self.reply, self.refusal = session, sequence, None, None


@dataclass
class RoundCoordinator:
    """Turns calls into ``handle`` and ``handle_barrier``. It has no clock and no thread: a link brings its own.

    ``roster`` says how many images each silo enrolled. A barrier fires when every silo that is not away waits at one;
    should they wait at different operations, one that closes no round goes first, and of several the one with most
    silos; the others wait on.
    ``check_deadline`` leaves out those who have not called by the deadline, and in a round of many barriers those who
    have come so ``late`` in all, each time after half of the silos. ``quorum`` is the least number to go on with.
    ``earlier`` is the server's state one generation before the newest that is kept: where no silo can train what the
    last round made, the server goes back to it, once, before the next update comes.
    """

    server: Server
    plan: Plan
    roster: Mapping[str, int]
    quorum: int = 1
    deadline: float = 600.0
    earlier: Callable[[], Tensors] | None = None
    closed: list[ClosedRound] = field(default_factory=list)
    late: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._callers = {name: _SiloState() for name in sorted(self.roster)}
        self._refusals: dict[str, str] = {}
        self._not_finite: set[str] = set()
        self._went_back = False
        self._now = 0.0
        self._opened: float | None = None

    def submit(self, silo: str, message: Message, session: str = "", sequence: int = 0, now: float = 0.0) -> None:
        """Take a call; the answer, when there is one, is got with ``collect``. A resend is never applied twice."""
        caller, self._now = self._caller(silo), max(now, self._now)
        self._opened = self._now if self._opened is None else self._opened
        if caller.is_resend(session, sequence):
            if caller.refusal is not None:
                raise caller.refusal
            return
        caller.check_order(session, sequence)
        caller.take(session, sequence)
        if caller.taken_in and caller.waiting is not None and caller.waiting.op == message.op:
            return  # sent anew after a restart: the first one counts already, and its answer goes to the new session
        self._check(silo, message)
        self.absent.pop(silo, None)
        if self.plan.operations[message.op].barrier:
            caller.waiting, caller.waits_in, caller.folded = message, session, caller.taken_in
            caller.came = self._now
            self._fold_in_order()
            self._fire_when_complete()
        else:
            caller.reply = self._unharmed(silo, lambda: self.server.handle(silo, message))

    def collect(self, silo: str, session: str = "") -> Message | None:
        """The answer to the newest call of the silo's session, or None while it waits at a barrier."""
        caller = self._caller(silo)
        if session != caller.session:
            raise Refused(Reason.OUT_OF_SEQUENCE, f"session {session!r} of {silo} has ended")
        if caller.refusal is not None and caller.waiting is None:
            raise caller.refusal
        return caller.reply

    def refuse(self, silo: str, refusal: Refused) -> Refused:
        """Note a refusal: it is told with the round, unless the silo mends what it said."""
        self._caller(silo).refusal = refusal
        if refusal.reason is Reason.NOT_FINITE:
            self._not_finite.add(silo)
        self._refusals[silo] = str(refusal)
        return refusal

    def check_deadline(self, now: float) -> None:
        """Go on without those for whom the others have waited long enough."""
        self._now = max(now, self._now)
        present = self._present()
        if self._opened is None or not (silent := [silo for silo, caller in present.items() if caller.waiting is None]):
            return
        half = self._half([caller.came for caller in present.values() if caller.waiting], len(present))
        for silo in silent:
            late = self.late.get(silo, 0.0) + (self._now - half if half is not None else 0.0)
            if self._now >= self._opened + self.deadline:
                self.absent[silo] = f"silent at the deadline of {self.deadline:g} s"
            elif late >= self.deadline:
                self.absent[silo] = f"kept the others waiting for {self.deadline:g} s in this round"
            if silo in self.absent:
                self.late[silo] = self.deadline
        if not self.absent.keys().isdisjoint(silent):
            self._fire_when_complete()

    def charge_delay(self, silo: str, seconds: float) -> None:
        """A silo has cost the others so much time; it is left out of the round where that is all it may."""
        self.late[silo] = self.late.get(silo, 0.0) + seconds
        if self.late[silo] >= self.deadline and silo not in self.absent:
            self.drop(silo, f"has cost the others {self.deadline:g} s in this round")

    def train_step(self) -> bool:
        """Let the server do a piece of its own work, if it has any; a round that was closed is kept first."""
        return not self.closed and self.server.train_step()

    def drop(self, silo: str, reason: str) -> None:
        """Go on without a silo, until it calls again; a call that it has made stands."""
        self.absent[silo] = reason
        self._fire_when_complete()

    def finish(self, silo: str) -> None:
        """A silo has ended as it should, and is awaited no more."""
        self.done.add(silo)
        self._fire_when_complete()

    def _caller(self, silo: str) -> _SiloState:
        if silo not in self._callers:
            raise Refused(Reason.UNKNOWN_SILO, f"{silo!r} is not enrolled")
        return self._callers[silo]

    def _check(self, silo: str, message: Message) -> None:
        try:
            self._unharmed(silo, lambda: self.plan.check(message, "up"))
            images, number = (message.facts.get(name) for name in ("images", "round"))
            if images not in (None, self.roster[silo]):
                raise Refused(Reason.WRONG_WEIGHT, f"says {images} images, enrolled {self.roster[silo]}")
            if number not in (None, self.server.round):
                raise Refused(Reason.STALE_ROUND, f"is of round {number}, this is {self.server.round}")
            self._unharmed(silo, lambda: self.server.validate(silo, message))
        except Refused as refusal:
            raise self.refuse(silo, refusal) from None

    def _unharmed(self, silo: str, tell: Callable[[], T]) -> T:
        """Whatever foreign values bring about in a server's own code is a refusal, too."""
        try:
            return tell()
        except FOREIGN_ERRORS as error:
            raise Refused(Reason.MALFORMED, f"{type(error).__name__}: {str(error)[:200]}") from error

    def _present(self) -> dict[str, _SiloState]:
        """Those who are awaited, and those who have called: a call stands even if its silo has gone since."""
        gone = self.absent.keys() | self.done
        return {name: caller for name, caller in self._callers.items() if caller.waiting or name not in gone}

    def _fold_in_order(self) -> None:
        for silo, caller in self._present().items():
            if caller.waiting is None:
                return
            if not caller.folded:
                self._fold(silo, caller, caller.waiting)

    def _fold(self, silo: str, caller: _SiloState, message: Message) -> None:
        try:
            kept = self._unharmed(silo, lambda: self.server.accumulate(silo, message))
            caller.waiting, caller.folded, caller.taken_in = kept, True, kept is not message
        except Refused as refusal:
            caller.waiting = None
            self.refuse(silo, refusal)

    def _fire_when_complete(self) -> None:
        present = self._present()
        if not present and self.done:
            return  # all who are left have gone, and the others are through
        if len(present) < min(self.quorum, len(self._callers) - len(self.done)):
            gone = "; ".join(f"{silo}: {why}" for silo, why in sorted(self.absent.items()))
            raise QuorumLost(f"{len(present)} silos are left, the recipe asks for {self.quorum} ({gone})")
        self._fold_in_order()
        waiting = {silo: caller.waiting for silo, caller in present.items() if caller.waiting is not None}
        if waiting and len(waiting) == len(present):
            count = Counter(message.op for message in waiting.values())
            op = max(count, key=lambda op: (not self.plan.operations[op].closes_round, count[op]))
            self._fire(op, {silo: message for silo, message in waiting.items() if message.op == op})

    def _fire(self, op: str, group: Mapping[str, Message]) -> None:
        self._opened, number = self._now, self.server.round
        note = self._go_back_if_none_can_train(group) if self.plan.operations[op].closes_round else ""
        self._note_late([self._callers[silo] for silo in group], list(group))
        replies = self.server.handle_barrier(op, group)
        for silo in group:
            caller = self._callers[silo]
            caller.waiting, caller.folded, caller.taken_in, caller.reply = None, False, False, replies[silo]
        if self.plan.operations[op].closes_round:
            facts = {silo: message.facts for silo, message in group.items()}
            missing = {silo: why for silo, why in {**self.absent, **self._refusals}.items() if silo not in group}
            self.closed.append(ClosedRound(number, facts, missing, note))
            self._refusals, self._not_finite = {}, set()
            self.late.clear()

    def _half(self, came: list[float], count: int) -> float | None:
        """When half of so many had come, if they have."""
        place = (count - 1) // 2
        return sorted(came)[place] if place < len(came) else None

    def _note_late(self, callers: list[_SiloState], silos: list[str]) -> None:
        half = self._half([caller.came for caller in callers], len(callers))
        for silo, caller in zip(silos, callers, strict=True):
            if half is not None and caller.came > half:
                self.late[silo] = self.late.get(silo, 0.0) + caller.came - half

    def _go_back_if_none_can_train(self, group: Mapping[str, Message]) -> str:
        """What is said of it where the server goes back, else nothing."""
        withheld = {silo: message.facts.get("withheld") or "" for silo, message in group.items()}
        others = [silo for silo, why in withheld.items() if why != RESTING and not self._was_refused(silo)]
        unable = [silo for silo in others if withheld[silo]]
        if not unable or len(unable) < len(others):
            self._went_back = False
            return ""
        if self._went_back or self.earlier is None:
            return ""
        left_out = self.server.go_back(self.earlier())
        self._went_back = left_out is not None
        if left_out is None:
            return ""
        gone = f"; {left_out}, whose update moved that mean most, is left out of the next round" if left_out else ""
        return f"no silo could train the last mean: the server went back to the weights before it{gone}"

    def _was_refused(self, silo: str) -> bool:
        """For another reason than numbers that are not finite, which is how an illness shows, too."""
        return silo in self._refusals and silo not in self._not_finite
