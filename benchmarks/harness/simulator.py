"""FLARE's simulator, with a process for each party, in a network of its own: it listens on all addresses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LOOPBACK_ALONE = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]


def has_own_network() -> bool:
    """Whether this machine gives a process a network of its own, in which nobody else can reach it."""
    return bool(shutil.which("unshare")) and not subprocess.run([*LOOPBACK_ALONE, "true"], check=False).returncode


def simulate(job: Path, workspace: Path, sites: Sequence[str]) -> None:
    """Run a job to its end."""
    if not has_own_network():
        raise SystemExit("this machine gives a process no network of its own (unshare), so the simulator is not begun")
    (workspace / "local").mkdir(parents=True)
    allowed = {"format_version": 2, "class_allow_list": ["nvflare.", "manyhands.federation.job."]}
    (workspace / "local" / "resources.json").write_text(json.dumps(allowed))
    options = ["-w", str(workspace), "-c", ",".join(sites), "-t", str(len(sites))]
    simulator = [sys.executable, "-m", "nvflare.cli", "simulator", str(job), *options]
    subprocess.run([*LOOPBACK_ALONE, *simulator], check=True, capture_output=True, timeout=600)
