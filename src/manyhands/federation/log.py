"""Log lines for people: each is printable and short, and no error in writing one ends the process."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TextIO

from manyhands.errors import printable

MAX_LINE_CHARACTERS = 4000
"""The most characters of a line."""
MAX_LINES_PER_PEER, WINDOW_SECONDS = 5, 60.0
"""The most lines about one peer, and in how many seconds."""
OURS = ("RunServer", "RunSite")
ABOUT_CONNECTIONS = ("AppCommandProcessor", "CoreCell", "TokenVerifier", "FederatedServer")
"""The loggers of FLARE whose errors are no reason for the end of a job."""
IN_WORDS = {
    "ComponentNotAuthorized": "its kit does not allow Manyhands in jobs; manyhands federation prepare allows it",
}
"""What an error of FLARE means, by what is in its line."""
_OF_FLARE = re.compile(r"\[identity=[^]]*\] - (?:Aborting current RUN due to FATAL_SYSTEM_ERROR received: )?")
_ERROR = re.compile(r"\S+ \S+ - (\S+) - (?:ERROR|CRITICAL) - (.*)")


def log(line: str, stream: TextIO | None = None) -> None:
    """Write a line with the time, whatever characters are in it, and even if the stream is closed."""
    out = stream or sys.stdout
    code = getattr(out, "encoding", None) or "utf-8"
    text = f"{time.strftime('%H:%M:%S')} {printable(line, MAX_LINE_CHARACTERS)}\n".encode(
        code, "backslashreplace"
    ).decode(code)
    with suppress(OSError, ValueError):  # nobody reads the stream any more
        out.write(text)
        out.flush()


@dataclass
class PeerLog:
    """Logs lines about peers; if there are too many about one peer, only how many were left out.

    Args:
        log: Takes a line for people.
        clock: Returns the time in seconds.
    """

    log: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _counts: dict[str, tuple[float, int]] = field(default_factory=dict)

    def __call__(self, peer: str, line: str) -> None:
        """Log a line about a peer, unless there were too many lately."""
        since, count = self._counts.get(peer, (self.clock(), 0))
        if self.clock() >= since + WINDOW_SECONDS:
            if count > MAX_LINES_PER_PEER:
                self.log(f"{peer}: {count - MAX_LINES_PER_PEER} more such lines were left out")
            since, count = self.clock(), 0
        if count < MAX_LINES_PER_PEER:
            self.log(f"{peer}: {line}")
        self._counts[peer] = since, count + 1


def root_cause(logs: Mapping[str, str]) -> str:
    """Return the first error in the logs of a job, one of ours if there is one; "" if there is none.

    Args:
        logs: The log of each party, as FLARE writes it.
    """
    errors = [
        (party, *match.groups())
        for party, text in logs.items()
        for match in map(_ERROR.match, text.splitlines())
        if match
    ]
    for ours in (True, False):
        for party, logger, line in errors:
            if (logger in OURS) is ours and logger not in ABOUT_CONNECTIONS and not line.startswith("Traceback"):
                words = next((words for sign, words in IN_WORDS.items() if sign in line), line)
                return f"{party}: {printable(_OF_FLARE.sub('', words), MAX_LINE_CHARACTERS)}"
    return ""
