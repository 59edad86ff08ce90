"""A party that dials: one call at a time, for as long as it takes."""

from __future__ import annotations

import queue
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from manyhands.federation.kit import SERVER, Kit
from manyhands.federation.plans import SITE_PLAN
from manyhands.links.exchange import MAX_WAITING_FRAMES, ClientSession

if TYPE_CHECKING:
    from manyhands.links.frame import Frame
    from manyhands.messages.message import Bounds, Message

IDLE_BOUNDS = SITE_PLAN.bounds("down")
"""What a site may be answered while it takes part in no run."""
SILENCE_SECONDS = 2.0
"""Seconds without a word after which the server is asked again."""


class ServerConnection:
    """The line of a site, or of the admin, to the server. ``patience`` gives up after so many silences in a row.

    An answer within ``bounds`` is taken; whoever begins a run widens them to what its plan allows.
    """

    def __init__(
        self,
        kit: Kit,
        on_connection_change: Callable[[bool], None] = lambda _: None,
        patience: int = 0,
        bounds: Bounds = IDLE_BOUNDS,
    ) -> None:
        from manyhands.links.flare import Connection

        self.bounds = bounds
        self._frames: queue.Queue[Frame] = queue.Queue(MAX_WAITING_FRAMES)
        self._patience = patience
        self.new_session()
        about = kit.about
        self._connection = Connection(
            about.party, kit.startup, about.host, about.port, "client",
            self._take, lambda peer, there: on_connection_change(there) if peer == SERVER else None,
        )  # fmt: skip

    def _take(self, peer: str, frame: Frame) -> None:
        """What does not fit is lost, as on a network: a server that floods fills no memory, and is asked again."""
        if peer == SERVER:
            with suppress(queue.Full):
                self._frames.put_nowait(frame)

    def new_session(self) -> None:
        """Begin a session."""
        self.session, self._number = secrets.token_hex(8), 0

    def __call__(self, message: Message) -> Message:
        """The answer; a refusal is raised, and so is ``SessionGone`` where all must begin anew."""
        self._number += 1
        call, silences = ClientSession(message, self.session, self._number, self.bounds), 0
        self._connection.send(SERVER, call.begin())
        while (answer := call.answer) is None:
            try:
                frame = self._frames.get(timeout=SILENCE_SECONDS)
            except queue.Empty:
                silences += 1
                if silences == self._patience:
                    raise TimeoutError from None
                self._connection.send(SERVER, call.ask_again())
                continue
            silences = 0
            self._connection.send(SERVER, call.take(frame))
        return answer

    def close(self) -> None:
        """Hang up."""
        self._connection.close()
