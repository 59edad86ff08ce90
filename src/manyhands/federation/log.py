"""What is said to people: every line comes through here, printable and short, and saying it ends nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TextIO

from manyhands.errors import printable

MAX_LINE = 4000
"""Characters of a line, at most."""
BURST, WINDOW = 5, 60.0
"""So many lines that one peer brings about are said in so many seconds."""


def log(line: str, stream: TextIO | None = None) -> None:
    """Say a line with the time, whatever is in it and whether anybody still listens or not."""
    out = stream or sys.stdout
    code = getattr(out, "encoding", None) or "utf-8"
    text = f"{time.strftime('%H:%M:%S')} {printable(line, MAX_LINE)}\n".encode(code, "backslashreplace").decode(code)
    with suppress(OSError, ValueError):  # whoever read it has gone
        out.write(text)
        out.flush()


@dataclass
class PeerLog:
    """Says lines that peers bring about; of one that brings about too many, how many were left out."""

    log: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _said: dict[str, tuple[float, int]] = field(default_factory=dict)

    def __call__(self, peer: str, line: str) -> None:
        """Say a line of a peer, unless it is one too many."""
        since, count = self._said.get(peer, (self.clock(), 0))
        if self.clock() >= since + WINDOW:
            if count > BURST:
                self.log(f"{peer}: {count - BURST} more such lines were left out")
            since, count = self.clock(), 0
        if count < BURST:
            self.log(f"{peer}: {line}")
        self._said[peer] = since, count + 1
