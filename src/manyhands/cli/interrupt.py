"""Ctrl-C and SIGTERM end a command at once, with a word of what is kept."""

from __future__ import annotations

import signal
from typing import NoReturn

INTERRUPTED = 130


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM; libraries have plans of their own for KeyboardInterrupt."""


def interrupt(*_: object) -> NoReturn:
    """Handle the signal once; what follows is short."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise Interrupted
