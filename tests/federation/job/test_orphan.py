"""A job's process ends if whoever launched it is gone, and goes on if it is there or nobody is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from manyhands.federation.job.orphan import PARENT

CHILD = "from manyhands.federation.job.orphan import end_if_orphaned; end_if_orphaned()"


LAUNCHERS = {"there": str(os.getpid()), "nobody": "", "gone": str(os.getpid() + 1)}


@pytest.mark.parametrize(("launcher", "code"), [("there", 0), ("nobody", 0), ("gone", -signal.SIGKILL)])
def test_only_a_process_whose_launcher_is_gone_ends(launcher: str, code: int) -> None:
    env = os.environ | {PARENT: LAUNCHERS[launcher]}
    child = subprocess.run([sys.executable, "-c", CHILD], env=env, check=False)
    assert child.returncode == code
