"""The server's end of all lines: who is there, and what each has called."""

from __future__ import annotations

import queue
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from manyhands.links.exchange import Desk, Frame

if TYPE_CHECKING:
    from manyhands.errors import Refused
    from manyhands.federation.kit import Kit
    from manyhands.message import Message

MOST = 1 << 32
"""Bytes of a message, at most."""


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
        self._came: queue.SimpleQueue[tuple[str, Frame | bool]] = queue.SimpleQueue()
        about = kit.about
        self._line = Line(
            about.party, kit.startup, host, port or about.port, "server",
            lambda peer, frame: self._came.put((peer, frame)), lambda peer, there: self._came.put((peer, there)),
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
        if (desk := self._desks.get(peer)) is None:
            return None
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

    def close(self) -> None:
        """Hang up."""
        self._line.close()
