"""Two processes: a worker does the work, and a supervisor restarts it when it crashes or is killed."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

WORKER = "MANYHANDS_WORKER"
MIN_WAIT_SECONDS, MAX_WAIT_SECONDS = 0.2, 10.0
GRACE = 2.0
"""Seconds that a worker has to close its connections and end; then it is killed, which loses nothing."""
HEALTHY_SECONDS = 30.0
"""A worker that ran for this many seconds is restarted without a longer wait."""


def is_worker() -> bool:
    """Whether this process is the worker of a supervisor."""
    return bool(os.environ.get(WORKER))


def end_with_supervisor() -> None:
    """End this worker as soon as its supervisor has ended, which closes the worker's standard input."""
    threading.Thread(target=_wait_for_end_of_input, daemon=True).start()


def supervise(arguments: Sequence[str]) -> int:
    """Run this command as a worker, restart it when it crashes, and return its exit code when it ends by itself."""
    wait, random = MIN_WAIT_SECONDS, secrets.SystemRandom()
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
        wait = MIN_WAIT_SECONDS if time.monotonic() - began > HEALTHY_SECONDS else min(2 * wait, MAX_WAIT_SECONDS)
        time.sleep(wait * random.uniform(0.5, 1))


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(GRACE)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _wait_for_end_of_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)
