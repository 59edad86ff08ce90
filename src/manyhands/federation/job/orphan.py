"""A job's process that has lost its parent ends: the restarted parent begins another one, and two would be in the way.

FLARE 2.9 ends it itself, but not if the parent was killed within the first second, before FLARE has noted its id.
"""

from __future__ import annotations

import os
import signal

PARENT = "MANYHANDS_PARENT"
"""The variable by which a launcher tells its own process id to the processes that it begins."""


def end_if_orphaned() -> None:
    """Kill this process, without a word to anybody, if the one that launched it is gone."""
    parent = os.environ.get(PARENT)
    if parent and os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGKILL)
