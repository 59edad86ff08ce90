"""The server's connections to the sites: what each has called, and the answers."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from manyhands.errors import printable
from manyhands.federation.plans import SITE_PLAN
from manyhands.links.exchange import MAX_WAITING_FRAMES, ServerSession
from manyhands.links.frame import INVALID, Frame
from manyhands.messages.message import Bounds

if TYPE_CHECKING:
    from manyhands.errors import Refused
    from manyhands.links.frame import Connect
    from manyhands.messages.message import Message

IDLE_CALL_BOUNDS = SITE_PLAN.bounds("up")
"""The largest message of a site that does not train."""
Log = Callable[[str, str], None]


class ReceivedCall(NamedTuple):
    """A call of which all parts have arrived.

    Args:
        peer: The party that called.
        session: The name of its session.
        number: The number of the call in the session.
        message: The message.
    """

    peer: str
    session: str
    number: int
    message: Message


class SiteConnections:
    """Listens for the sites; frames of anybody else are dropped.

    Args:
        connect: Opens the connection.
        peers: The names of the sites.
        log: Takes the name of a peer and what it did wrong.

    Attributes:
        muted: The peers whose frames are dropped.
        spent: How many seconds the frames of each peer have taken since the server last charged it.
    """

    def __init__(self, connect: Connect, peers: Iterable[str], log: Log = lambda _peer, _line: None) -> None:
        self.muted: frozenset[str] = frozenset()
        self.spent: dict[str, float] = defaultdict(float)
        self._log = log
        self._sessions = {peer: ServerSession(IDLE_CALL_BOUNDS) for peer in peers}
        self._room = {peer: threading.Semaphore(MAX_WAITING_FRAMES) for peer in self._sessions}
        self._arrivals: queue.SimpleQueue[tuple[str, Frame]] = queue.SimpleQueue()
        self._connection = connect(self._enqueue)

    def next(self, timeout: float) -> ReceivedCall | None:
        """Return the next call, or None if no call is complete within this many seconds."""
        try:
            peer, frame = self._arrivals.get(timeout=timeout)
        except queue.Empty:
            return None
        self._room[peer].release()
        began = time.perf_counter()
        try:
            return self._receive(peer, frame)
        except Exception as error:  # a frame of one peer must not end the server for the others
            self._log(peer, f"its frame was dropped: {type(error).__name__}")
            return None
        finally:
            self.spent[peer] += time.perf_counter() - began

    def allow(self, peers: Iterable[str] = (), bounds: Bounds = IDLE_CALL_BOUNDS) -> None:
        """Allow these sites messages within ``bounds``, and the other sites only those without training."""
        for session in self._sessions.values():
            session.bounds = IDLE_CALL_BOUNDS
        for peer in self._sessions.keys() & set(peers):  # a run may have begun with more sites than its job has now
            self._sessions[peer].bounds = Bounds.largest([bounds, IDLE_CALL_BOUNDS])

    def answer(self, peer: str, answer: Message | Refused) -> None:
        """Answer or refuse the newest call of a peer."""
        self._connection.send(peer, self._sessions[peer].answer(answer))

    def forget(self, peers: Iterable[str]) -> None:
        """End the sessions of these peers, which must begin new ones."""
        for peer in self._sessions.keys() & set(peers):
            self._connection.send(peer, self._sessions[peer].forget())

    def _receive(self, peer: str, frame: Frame) -> ReceivedCall | None:
        session = self._sessions[peer]
        if frame.fields["k"] == INVALID:
            self._log(peer, f"its frame was dropped: {printable(frame.fields['why'])}")
        frames, message = session.take(frame)
        self._connection.send(peer, frames)
        return None if message is None else ReceivedCall(peer, session.session.name, session.session.number, message)

    def _enqueue(self, peer: str, frame: Frame) -> None:
        if peer in self._room and peer not in self.muted and self._room[peer].acquire(blocking=False):
            self._arrivals.put((peer, frame))
