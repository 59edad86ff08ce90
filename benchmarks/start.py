"""How long a user waits: for the help page, and from a fresh clone to the first picture."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import bench

BARS = {"start": "<= 0.5", "demo_seconds": "<= 300"}


def measure(args: argparse.Namespace) -> bench.Measured:
    """Seconds of ``manyhands --help`` (median of 9), and of ``make demo`` in a fresh clone, pip included."""
    command = Path(sys.executable).with_name("manyhands")
    helps = [seconds([str(command), "--help"], bench.ROOT) for _ in range(9)]
    demo = None if args.quick else fresh_demo()
    measured = {"figures": {"start": round(statistics.median(helps), 3), "demo_seconds": demo}, "seeds": [0]}
    return measured | ({"why": {"demo_seconds": "it installs everything: not in --quick"}} if demo is None else {})


def fresh_demo() -> float:
    """Clone what is committed into an empty folder and run the README's first command."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "-q", str(bench.ROOT), f"{folder}/clone"], check=True)
        return round(seconds(["make", "demo"], Path(folder) / "clone"), 1)


def seconds(command: list[str], where: Path) -> float:
    """The wall-clock time of a command that must succeed."""
    began = time.perf_counter()
    subprocess.run(command, cwd=where, check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    bench.main("start", measure, BARS)
