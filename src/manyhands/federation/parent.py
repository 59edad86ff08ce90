"""FLARE's own process of a server or a site, in the foreground: it launches a process for each job."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from manyhands.errors import KitError

if TYPE_CHECKING:
    from typing import IO

    from manyhands.federation.kit import Kit

JOBS = "jobs"
"""The folder of FLARE's store of jobs, in what the server keeps."""
GRACE_SECONDS = 5.0


def start(kit: Kit, log: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start FLARE's process with the script of the kit, which restarts it if it is killed.

    Args:
        kit: The kit of a server or a site.
        log: Where it writes; None means here.
    """
    script = kit.startup / "sub_start.sh"
    if not script.exists():
        raise KitError(f"{script}: is missing; FLARE starts a party with it")
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    jobs = (kit.kept / JOBS).resolve()
    if kit.role == "server":
        jobs.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"PATH": python, "NVFL_JOB_STORE_ROOT": str(jobs)}
    return subprocess.Popen(
        ["bash", str(script.resolve())], cwd=kit.folder, env=env, stdout=log, stderr=log, start_new_session=True
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End FLARE's process, its script and its jobs, which go on when it is started again; nothing is lost."""
    with suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, GRACE_SECONDS)
    process.wait()


def run(kit: Kit) -> int:
    """Run FLARE's process until it ends or somebody ends this one; return its exit code."""
    process = start(kit)
    try:
        return process.wait()
    finally:
        end(process)
