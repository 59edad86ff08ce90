"""Which call of a client is open: each call is applied at most once, and a session that has ended never again."""

from __future__ import annotations

from collections import deque
from typing import final

MAX_RETIRED_SESSIONS = 64
"""The most ended sessions of a client that are remembered."""


@final
class Session:
    """The session of one client and the number of its open call.

    A session numbers its calls 1, 2, 3, and has ended when another one begins. Where nothing is lost and so nothing is
    sent again, as within one process, all its calls may have the number 0.

    Args:
        first: The number of the first call of a session; 0 allows any, for a server that does not see every call.
    """

    def __init__(self, first: int = 0) -> None:
        self.name, self.number = "", 0
        self._first = first
        self._retired: deque[str] = deque(maxlen=MAX_RETIRED_SESSIONS)

    def is_open(self, name: str, number: int) -> bool:
        """Whether this is the open call: a part of it, or the same one sent again."""
        return number > 0 and (name, number) == (self.name, self.number)

    def may_begin(self, name: str, number: int) -> bool:
        """Whether this call may follow the open one: it is the next of its session, or the first of a new session."""
        if name in self._retired:
            return False
        if name != self.name:
            return not self._first or number == self._first
        return number == self.number + 1 or number == self.number == self._first == 0

    def begin(self, name: str, number: int) -> None:
        """Make this the open call; if it is of another session, the one before has ended."""
        if name != self.name:
            self.retire()
        self.name, self.number = name, number

    def retire(self) -> None:
        """End the session: none of its calls may begin or is open any more."""
        if self.name not in self._retired:
            self._retired.append(self.name)
        self.name, self.number = "", 0
