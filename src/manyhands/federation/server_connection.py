"""The connection of a site to the server: one call at a time, repeated until it is answered."""

from __future__ import annotations

import queue
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from manyhands.federation.kit import SERVER
from manyhands.federation.plans import SITE_PLAN
from manyhands.links.exchange import MAX_WAITING_FRAMES, ClientSession

if TYPE_CHECKING:
    from manyhands.links.frame import Connect, Frame
    from manyhands.messages.message import Bounds, Message

IDLE_ANSWER_BOUNDS = SITE_PLAN.bounds("down")
"""The largest answer to a site that takes part in no run."""
SILENCE_SECONDS = 2.0
"""Seconds without a frame after which the server is asked again."""


class RunAborted(Exception):  # noqa: N818 - the name of the event
    """FLARE ended the job before the run had ended: no error of a run, so nothing declines for it."""


class ServerConnection:
    """A connection to the server.

    Args:
        connect: Opens the connection.
        is_over: Whether FLARE has ended the job.

    Attributes:
        bounds: The largest answer that is accepted. A site that takes part in a run widens them to its plan.
    """

    def __init__(self, connect: Connect, is_over: Callable[[], bool] = lambda: False) -> None:
        self.bounds: Bounds = IDLE_ANSWER_BOUNDS
        self._frames: queue.Queue[Frame] = queue.Queue(MAX_WAITING_FRAMES)
        self._is_over = is_over
        self.new_session()
        self._connection = connect(self._take)

    def _take(self, peer: str, frame: Frame) -> None:
        """Queue a frame, or drop it if the queue is full: a server cannot fill the memory, and is asked again."""
        if peer == SERVER:
            with suppress(queue.Full):
                self._frames.put_nowait(frame)

    def check(self) -> None:
        """Raise ``RunAborted`` if FLARE has ended the job."""
        if self._is_over():
            raise RunAborted

    def new_session(self) -> None:
        """Begin a new session."""
        self.session, self._number = secrets.token_hex(8), 0

    def __call__(self, message: Message) -> Message:
        """Send a message and return the answer.

        Raises:
            Refused: The server refuses the message.
            SessionGone: The server has ended the session; a new one is needed.
            RunAborted: FLARE ended the job before the server answered.
        """
        self._number += 1
        call = ClientSession(message, self.session, self._number, self.bounds)
        self._send(call.begin())
        while (answer := call.answer) is None:
            try:
                frame = self._frames.get(timeout=SILENCE_SECONDS)
            except queue.Empty:
                self.check()
                self._send(call.ask_again())
                continue
            self._send(call.take(frame))
        return answer

    def _send(self, frames: Sequence[Frame]) -> None:
        try:
            self._connection.send(SERVER, frames)
        except RuntimeError:  # FLARE stops the cell of a job that it ends
            self.check()
            raise
