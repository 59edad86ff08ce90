"""A process that does the work, and one that keeps it going: what a kill or a crash ends is begun again."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

WORKER = "MANYHANDS_WORKER"
FIRST_WAIT, MAX_WAIT = 0.2, 10.0
GRACE = 2.0
"""Seconds that a worker has to hang up and end; after them it is killed, which it bears at any moment."""
LONG = 30.0
"""Seconds after which a worker that ends has been well."""


def is_worker() -> bool:
    """Whether this process is to do the work; then it ends when its keeper does."""
    if not os.environ.get(WORKER):
        return False
    threading.Thread(target=_end_with_keeper, daemon=True).start()
    return True


def keep(arguments: Sequence[str]) -> int:
    """Run this command as a worker until it ends by itself; its exit code."""
    wait, chance = FIRST_WAIT, secrets.SystemRandom()
    while True:
        began = time.monotonic()
        worker = subprocess.Popen(
            [sys.executable, "-m", "manyhands", *arguments], stdin=subprocess.PIPE, env=os.environ | {WORKER: "1"}
        )
        try:
            code = worker.wait()
        except BaseException:
            _end(worker)
            raise
        if code >= 0 and code != 1:
            return code
        wait = FIRST_WAIT if time.monotonic() - began > LONG else min(2 * wait, MAX_WAIT)
        time.sleep(wait * chance.uniform(0.5, 1))


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(GRACE)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _end_with_keeper() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)
