"""The server's end of all lines: who is there, and what each has called."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from manyhands.links.exchange import MOST, WINDOW, Desk, Frame

if TYPE_CHECKING:
    from manyhands.errors import Refused
    from manyhands.federation.kit import Kit
    from manyhands.message import Message

ROOM = 4 * WINDOW
"""Frames of a peer that wait to be looked at, at most: more are lost, as a network may lose them."""


class Called(NamedTuple):
    """A call that has come whole."""

    peer: str
    session: str
    number: int
    message: Message


class Switchboard:
    """Listens; whoever has no desk here is not heard.

    ``there`` are those who are connected, ``stirring`` those of whom a part of a message has come.
    """

    def __init__(self, kit: Kit, peers: Iterable[str], host: str, port: int = 0) -> None:
        from manyhands.links.nvflare import Line

        self.there: set[str] = set()
        self.stirring: set[str] = set()
        self._desks = {peer: Desk(MOST) for peer in peers}
        self._room = {peer: threading.Semaphore(ROOM) for peer in self._desks}
        self._came: queue.SimpleQueue[tuple[str, Frame | bool]] = queue.SimpleQueue()
        about = kit.about
        self._line = Line(
            about.party, kit.startup, host, port or about.port, "server",
            self._frame, lambda peer, there: self._came.put((peer, there)),
        )  # fmt: skip

    def next(self, timeout: float) -> Called | None:
        """The next call, if what comes within so many seconds makes one whole."""
        try:
            peer, what = self._came.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(what, bool):
            (self.there.add if what else self.there.discard)(peer)
            return None
        self._room[peer].release()
        desk = self._desks[peer]
        frames, message = desk.take(what)
        self._line.send(peer, frames)
        if message is None:
            if desk.growing and what.told.get("k") == "part":
                self.stirring.add(peer)
            return None
        return Called(peer, desk.session, desk.number, message)

    def answer(self, peer: str, answer: Message | Refused) -> None:
        """Answer, or refuse, the newest call of a peer."""
        self._line.send(peer, self._desks[peer].answer(answer))

    def forget(self, peers: Iterable[str]) -> None:
        """End the sessions of peers: each must begin another one."""
        for peer in peers:
            self._line.send(peer, self._desks[peer].forget())

    def _frame(self, peer: str, frame: Frame) -> None:
        if peer in self._room and self._room[peer].acquire(blocking=False):
            self._came.put((peer, frame))

    def close(self) -> None:
        """Hang up."""
        self._line.close()
