"""The server's side of any link: it checks each call, waits for the silos of a barrier, and keeps their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, TypeVar

from manyhands.errors import ManyhandsError, MessageError, Reason, Refused
from manyhands.formatting import names_text
from manyhands.links.late_silos import LateSilos
from manyhands.links.session import Session
from manyhands.messages.operation import RESTING
from manyhands.silos.quorum import check_present

if TYPE_CHECKING:
    from manyhands.messages.message import Message
    from manyhands.messages.plan import Plan
    from manyhands.methods.server import Server
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
"""What a server's code may raise when a silo sends unexpected values."""


@dataclass(frozen=True)
class ClosedRound:
    """A round that has ended.

    Args:
        round: Its number.
        facts: The facts of each silo's last message.
        missing: The silos that were missing, and why.
        note: Whether the server went back to earlier weights, in words; "" if not.
    """

    round: int
    facts: Mapping[str, Mapping[str, object]]
    missing: Mapping[str, str]
    note: str = ""


@dataclass
class _SiloState:
    """The state of one silo: its latest call, and the answer to it or its refusal."""

    session: Session = field(default_factory=Session)
    reply: Message | None = None
    refusal: Refused | None = None
    waiting: Message | None = None
    waiting_session: str = ""
    accumulated: bool = False
    taken: bool = False
    arrived: float = 0.0

    def begin(self, session: str, number: int) -> None:
        """Begin a call; refuse one out of order, and one of a session that waits for the answer to another."""
        waits = self.waiting is not None and session == self.waiting_session
        if waits or not self.session.may_begin(session, number):
            latest = self.session.number
            raise Refused(Reason.OUT_OF_SEQUENCE, f"call {number} of session {session!r} came after {latest}")
        self.session.begin(session, number)
        self.reply = self.refusal = None


@dataclass
class RoundCoordinator:
    """Turns calls into ``handle`` and ``handle_barrier`` of a server. It has no clock and no thread: a link has them.

    A barrier is answered when every silo that is not absent waits at one. If they wait at different operations, one
    that closes no round goes first, and among several the one with most silos; the other silos keep waiting.
    If no silo can train the weights of the last round, the server goes back once to the weights before it.

    Args:
        server: The server's half of the method.
        plan: The plan of the method; every call is checked against it.
        roster: The number of images that each silo enrolled.
        quorum: The fewest silos with which a run continues.
        earlier: Loads the server's state of one round before the latest checkpoint.
        closed: The rounds that have ended and are not yet recorded.
        late: The seconds that each silo has delayed the others in this round, and the deadline.
        absent: The silos that are not waited for, and why.
        done: The silos that have finished.
    """

    server: Server
    plan: Plan
    roster: Mapping[str, int]
    _: KW_ONLY
    quorum: int = 1
    earlier: Callable[[], Tensors] | None = None
    closed: list[ClosedRound] = field(default_factory=list)
    late: LateSilos = field(default_factory=LateSilos)
    absent: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._callers = {name: _SiloState() for name in sorted(self.roster)}
        self._refusals: dict[str, str] = {}
        self._not_finite: set[str] = set()
        self._has_gone_back = False
        self._now = 0.0
        self._opened: float | None = None

    @property
    def waiting(self) -> dict[str, str]:
        """The silos that wait at a barrier, and the operation that they have sent."""
        return {name: caller.waiting.op for name, caller in self._callers.items() if caller.waiting is not None}

    def submit(self, silo: str, message: Message, session: str = "", sequence: int = 0, now: float = 0.0) -> None:
        """Accept a call; ``collect`` returns its answer. A repeated call is not applied twice.

        Args:
            silo: The silo that calls.
            message: The call.
            session: The session of the silo.
            sequence: The number of the call in its session.
            now: The time in seconds.
        """
        caller, self._now = self._caller(silo), max(now, self._now)
        self._opened = self._now if self._opened is None else self._opened
        if caller.session.is_open(session, sequence):
            if caller.refusal is not None:
                raise caller.refusal
            return
        caller.begin(session, sequence)
        if caller.taken and caller.waiting is not None and caller.waiting.op == message.op:
            return  # sent again after a restart: it was added up before, and the new session gets its answer
        self._check(silo, message)
        self.absent.pop(silo, None)
        if self.plan.operations[message.op].barrier:
            caller.waiting, caller.waiting_session, caller.accumulated = message, session, caller.taken
            caller.arrived = self._now
            self._accumulate_in_order()
            self._fire_when_complete()
        else:
            caller.reply = self._refuse_errors(silo, lambda: self.server.handle(silo, message))

    def collect(self, silo: str, session: str = "") -> Message | None:
        """Return the answer to the silo's latest call, or None while it waits at a barrier."""
        caller = self._caller(silo)
        if session != caller.session.name:
            raise Refused(Reason.OUT_OF_SEQUENCE, f"session {session!r} of {silo} has ended")
        if caller.refusal is not None and caller.waiting is None:
            raise caller.refusal
        return caller.reply

    def refuse(self, silo: str, refusal: Refused) -> Refused:
        """Record a refusal: the round reports it, unless the silo sends a valid call in time."""
        self._caller(silo).refusal = refusal
        if refusal.reason is Reason.NOT_FINITE:
            self._not_finite.add(silo)
        self._refusals[silo] = str(refusal)
        return refusal

    def check_deadline(self, now: float) -> None:
        """Leave out the silos that have exceeded the deadline."""
        self._now = max(now, self._now)
        if self._opened is None:
            return
        present = self._present()
        silent = [silo for silo, caller in present.items() if caller.waiting is None]
        arrived = [caller.arrived for caller in present.values() if caller.waiting]
        left_out = self.late.leave_out(silent, arrived, self._opened, self._now)
        self.absent |= left_out
        if left_out:
            self._fire_when_complete()

    def charge_delay(self, silo: str, seconds: float) -> None:
        """Record that a silo has delayed the others; it is left out of the round if it has used up the deadline."""
        if self.late.add(silo, seconds) and silo not in self.absent:
            self.drop(silo, f"delayed the others by {self.late.deadline:g} s in this round")

    def train_step(self) -> bool:
        """Let the server do a step of its own training, if it has any, unless a round is not yet recorded."""
        return not self.closed and self.server.train_step()

    def drop(self, silo: str, reason: str) -> None:
        """Continue without a silo until it calls again; a call that it has made still counts."""
        self.absent[silo] = reason
        self._fire_when_complete()

    def finish(self, silo: str) -> None:
        """Record that a silo has finished and is no longer waited for."""
        self.done.add(silo)
        self._fire_when_complete()

    def _caller(self, silo: str) -> _SiloState:
        if silo not in self._callers:
            raise Refused(Reason.UNKNOWN_SILO, f"{silo!r} is not enrolled")
        return self._callers[silo]

    def _check(self, silo: str, message: Message) -> None:
        try:
            self._refuse_errors(silo, lambda: self.plan.check(message, "up"))
            images, number = (message.facts.get(name) for name in ("images", "round"))
            if images not in (None, self.roster[silo]):
                raise Refused(Reason.WRONG_WEIGHT, f"reports {images} images, but enrolled {self.roster[silo]}")
            if number not in (None, self.server.round):
                raise Refused(Reason.STALE_ROUND, f"is of round {number}, this is {self.server.round}")
            self._refuse_errors(silo, lambda: self.server.validate(silo, message))
        except Refused as refusal:
            raise self.refuse(silo, refusal) from None

    def _refuse_errors(self, silo: str, function: Callable[[], T]) -> T:
        """Call a function; an error in the server's code that a silo's values caused is a refusal, too."""
        try:
            return function()
        except FOREIGN_ERRORS as error:
            raise Refused(Reason.MALFORMED, f"{type(error).__name__}: {str(error)[:200]}") from error

    def _present(self) -> dict[str, _SiloState]:
        """Return the silos that are waited for or have called: a call counts even if its silo is absent since."""
        gone = self.absent.keys() | self.done
        return {name: caller for name, caller in self._callers.items() if caller.waiting or name not in gone}

    def _accumulate_in_order(self) -> None:
        for silo, caller in self._present().items():
            if caller.waiting is None:
                return
            if not caller.accumulated:
                self._accumulate(silo, caller, caller.waiting)

    def _accumulate(self, silo: str, caller: _SiloState, message: Message) -> None:
        try:
            kept = self._refuse_errors(silo, lambda: self.server.accumulate(silo, message))
            caller.waiting, caller.accumulated, caller.taken = kept.message, True, kept.taken
        except Refused as refusal:
            caller.waiting = None
            self.refuse(silo, refusal)

    def _fire_when_complete(self) -> None:
        present = self._present()
        if not present and self.done:
            return  # the remaining silos are absent, the others have finished
        check_present(self.quorum, len(present), len(self._callers) - len(self.done), self.absent)
        self._accumulate_in_order()
        waiting = {silo: caller.waiting for silo, caller in present.items() if caller.waiting is not None}
        if waiting and len(waiting) == len(present):
            count = Counter(message.op for message in waiting.values())
            op = max(count, key=lambda op: (not self.plan.operations[op].closes_round, count[op]))
            self._fire(op, {silo: message for silo, message in waiting.items() if message.op == op})

    def _fire(self, op: str, group: Mapping[str, Message]) -> None:
        self._opened, number = self._now, self.server.round
        note = self._go_back_if_none_can_train(group) if self.plan.operations[op].closes_round else ""
        self.late.add_barrier({silo: self._callers[silo].arrived for silo in group})
        replies = self.server.handle_barrier(op, group)
        self._check_handled(op, group, replies, rounds=self.server.round - number)
        for silo in group:
            caller = self._callers[silo]
            caller.waiting, caller.accumulated, caller.taken, caller.reply = None, False, False, replies[silo]
        if self.plan.operations[op].closes_round:
            facts = {silo: message.facts for silo, message in group.items()}
            missing = {silo: why for silo, why in {**self.absent, **self._refusals}.items() if silo not in group}
            self.closed.append(ClosedRound(number, facts, missing, note))
            self._refusals, self._not_finite = {}, set()
            self.late.clear()

    def _check_handled(self, op: str, group: Iterable[str], replies: Collection[str], *, rounds: int) -> None:
        """Raise ``ManyhandsError`` where the server's half forgot a silo, or did not count the round that it closed."""
        where = f"{type(self.server).__name__}.handle_barrier({op!r})"
        if missing := [silo for silo in group if silo not in replies]:
            raise ManyhandsError(f"{where} returned no answer for {names_text(missing)}; every silo needs one")
        if self.plan.operations[op].closes_round and rounds != 1:
            raise ManyhandsError(f"{where} closes a round, so it must add 1 to self.round; it added {rounds}")

    def _go_back_if_none_can_train(self, group: Mapping[str, Message]) -> str:
        """Go back to earlier weights if no silo can train the latest; return a note, or "" if not."""
        withheld = {silo: message.facts.get("withheld") or "" for silo, message in group.items()}
        others = [silo for silo, why in withheld.items() if why != RESTING and not self._was_refused(silo)]
        unable = [silo for silo in others if withheld[silo]]
        if not unable or len(unable) < len(others):
            self._has_gone_back = False
            return ""
        if self._has_gone_back or self.earlier is None:
            return ""
        left_out = self.server.go_back(self.earlier())
        self._has_gone_back = left_out is not None
        if left_out is None:
            return ""
        gone = f"; {left_out}, whose update moved that mean most, is left out of the next round" if left_out else ""
        return f"no silo could train the last mean: the server went back to the weights before it{gone}"

    def _was_refused(self, silo: str) -> bool:
        """Whether a silo was refused for another reason than NaN or infinity, which diverged training causes, too."""
        return silo in self._refusals and silo not in self._not_finite
