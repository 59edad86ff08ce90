"""The server's end of all lines: who is there, and what each has called."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from manyhands.errors import printable
from manyhands.federation.kit import ADMIN
from manyhands.federation.plans import ADMIN_PLAN, SITE_PLAN
from manyhands.links.exchange import MAX_WAITING_FRAMES, ServerSession
from manyhands.links.frame import INVALID, Frame
from manyhands.messages.message import Bounds

if TYPE_CHECKING:
    from manyhands.errors import Refused
    from manyhands.federation.kit import Kit
    from manyhands.messages.message import Message

IDLE_BOUNDS = {True: ADMIN_PLAN.bounds("up"), False: SITE_PLAN.bounds("up")}
"""What the admin, and what a site may say at once when no run is on."""
Log = Callable[[str, str], None]


class ReceivedCall(NamedTuple):
    """A call that has come whole."""

    peer: str
    session: str
    number: int
    message: Message


class SiteConnections:
    """Listens; whoever has no desk here is not heard. ``there`` are those who are connected.

    What a peer does wrong is told of by ``log``: who, and what. ``spent`` are the seconds that the frames of each have
    taken since it was looked at, and of those who are ``muted`` none is looked at.
    """

    def __init__(
        self, kit: Kit, peers: Iterable[str], host: str, port: int = 0, log: Log = lambda _peer, _line: None
    ) -> None:
        from manyhands.links.flare import Connection

        self.connected: set[str] = set()
        self.muted: frozenset[str] = frozenset()
        self.spent: dict[str, float] = defaultdict(float)
        self._log = log
        self._sessions = {peer: ServerSession(IDLE_BOUNDS[peer == ADMIN]) for peer in peers}
        self._room = {peer: threading.Semaphore(MAX_WAITING_FRAMES) for peer in self._sessions}
        self._came: queue.SimpleQueue[tuple[str, Frame | bool]] = queue.SimpleQueue()
        about = kit.about
        self._connection = Connection(
            about.party, kit.startup, host, port or about.port, "server",
            self._frame, lambda peer, connected: self._came.put((peer, connected)),
        )  # fmt: skip

    def next(self, timeout: float) -> ReceivedCall | None:
        """The next call, if what comes within so many seconds makes one whole."""
        try:
            peer, arrival = self._came.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(arrival, bool):
            (self.connected.add if arrival else self.connected.discard)(peer)
            return None
        self._room[peer].release()
        began = time.perf_counter()
        try:
            return self._taken(peer, arrival)
        except Exception as error:  # a frame of one ends nothing for the others, whatever it brings about
            self._log(peer, f"a frame of it was dropped: {type(error).__name__}")
            return None
        finally:
            self.spent[peer] += time.perf_counter() - began

    def allow(self, peers: Iterable[str] = (), bounds: Bounds = IDLE_BOUNDS[False]) -> None:
        """From now on so much may be said at once by these, and by other sites no more than when no run is on."""
        for peer in self._sessions.keys() - {ADMIN}:
            self._sessions[peer].bounds = IDLE_BOUNDS[False]
        for peer in peers:
            self._sessions[peer].bounds = Bounds.largest([bounds, IDLE_BOUNDS[False]])

    def answer(self, peer: str, answer: Message | Refused) -> None:
        """Answer, or refuse, the newest call of a peer."""
        self._connection.send(peer, self._sessions[peer].answer(answer))

    def forget(self, peers: Iterable[str]) -> None:
        """End the sessions of peers: each must begin another one."""
        for peer in peers:
            self._connection.send(peer, self._sessions[peer].forget())

    def _taken(self, peer: str, frame: Frame) -> ReceivedCall | None:
        session = self._sessions[peer]
        if frame.fields["k"] == INVALID:
            self._log(peer, f"a frame of it was dropped: {printable(frame.fields['why'])}")
        frames, message = session.take(frame)
        self._connection.send(peer, frames)
        return None if message is None else ReceivedCall(peer, session.session.name, session.session.number, message)

    def _frame(self, peer: str, frame: Frame) -> None:
        if peer in self._room and peer not in self.muted and self._room[peer].acquire(blocking=False):
            self._came.put((peer, frame))

    def close(self) -> None:
        """Hang up."""
        self._connection.close()
