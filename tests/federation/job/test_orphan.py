"""A job's process ends if whoever launched it is gone, and goes on if it is there or nobody is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from manyhands.federation.job.orphan import PARENT

CHILD = "from manyhands.federation.job.orphan import end_if_orphaned; end_if_orphaned()"


@pytest.mark.parametrize(("parent", "code"), [(str(os.getpid()), 0), ("", 0), (str(os.getpid() + 1), -signal.SIGKILL)])
def test_only_a_process_whose_launcher_is_gone_ends(parent: str, code: int) -> None:
    child = subprocess.run([sys.executable, "-c", CHILD], env=os.environ | {PARENT: parent}, check=False)
    assert child.returncode == code
