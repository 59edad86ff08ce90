"""Ctrl-C and SIGTERM end a command at once, with a message that says what is kept."""

from __future__ import annotations

import signal
from typing import NoReturn

INTERRUPTED = 130


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. It is not a KeyboardInterrupt, because libraries handle that in their own ways."""


def interrupt(*_: object) -> NoReturn:
    """Raise ``Interrupted``, and ignore further signals: the command ends soon."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise Interrupted
