"""Every benchmark at toy size, to see that each still runs: PyTorch is imported once, and each program forks off it.

A program is run as it would be typed, ``benchmarks/NAME.py --quick --json``, in a process of its own with one thread,
as many at a time as there are cores; it calls ``manyhands`` there, or in a fork where the memory of a run is measured.
Their seconds are printed; the exit code is 1 where one failed or did not end.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple
from unittest import mock

from harness import bench
from harness.fork_server import context, printed
from manyhands.cli.app import app

PROGRAMS = (
    "network", "data_size", "huscf", "network_faults", "collafuse", "federated_diffusion", "real_training", "start",
    "kill", "page", "sampling", "digits", "memorisation", "fifty_silos", "memory", "ranking", "metric_seconds", "fid",
    "convergence", "chatty", "bytes", "overhead", "gpu", "torn", "real_images",
)  # fmt: skip
"""The longest first, so that no core is left with one of them at the end."""
IN_SUBPROCESSES = ("fifty_silos",)
"""Those whose runs are processes of their own."""
LOCK = threading.Lock()
MAX_SECONDS = 600.0
"""Seconds after which a program is taken to hang."""


class EndedProgram(NamedTuple):
    """How a program ended: 0 is well."""

    program: str
    seconds: float
    code: int | None


class RunningProgram(NamedTuple):
    """A program under way."""

    program: str
    began: float
    process: BaseProcess

    def over(self) -> bool:
        """Whether it has ended; one that hangs is ended here."""
        if self.process.is_alive() and time.monotonic() - self.began > MAX_SECONDS:
            self.process.kill()
            self.process.join()
        return not self.process.is_alive()


def run(program: str) -> None:
    """What typing it would do, in this process."""
    path = bench.PROGRAMS / f"{program}.py"
    sys.argv = [str(path), "--quick", "--json"]
    here = mock.patch.object(bench, "manyhands", forked if program in IN_SUBPROCESSES else call)
    with here, contextlib.redirect_stdout(io.StringIO()) as said:
        runpy.run_path(str(path), run_name="__main__")
    json.loads(said.getvalue())


def call(words: Sequence[str], _threads: int | None) -> str:
    """What ``bench.manyhands`` does, in this process, one at a time."""
    with LOCK, contextlib.redirect_stdout(io.StringIO()) as said:
        app(words, standalone_mode=False)
    return said.getvalue()


def forked(words: Sequence[str], _threads: int | None) -> str:
    """The same in a process of its own."""
    return printed("manyhands", *words, fresh=False)


def begin(program: str) -> RunningProgram:
    """Start one."""
    process = context().Process(target=run, args=(program,))
    process.start()
    return RunningProgram(program, time.monotonic(), process)


def run_all(programs: Sequence[str], parallel: int) -> Iterator[EndedProgram]:
    """All of them, so many at a time, as they end."""
    waiting, running = deque(programs), list[RunningProgram]()
    while waiting or running:
        running += [begin(waiting.popleft()) for _ in range(min(parallel - len(running), len(waiting)))]
        wait([one.process.sentinel for one in running], timeout=1)
        for one in [one for one in running if one.over()]:
            running.remove(one)
            yield EndedProgram(one.program, time.monotonic() - one.began, one.process.exitcode)


def main(programs: Sequence[str]) -> int:
    """Run them; the exit code."""
    if unknown := sorted(name for name in programs if not (bench.PROGRAMS / f"{name}.py").is_file()):
        raise SystemExit(f"{unknown[0]}: there is no such benchmark; known: {', '.join(sorted(PROGRAMS))}")
    os.environ["OMP_NUM_THREADS"] = "1"
    failed = []
    for program, seconds, code in run_all(programs, os.cpu_count() or 1):
        failed += [program] * (code != 0)
        print(f"{seconds:6.1f} s  {program}" + (f": failed with {code}" if code else ""), flush=True)
    print(f"{len(programs)} benchmarks ran; {len(failed)} failed: {' '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:] or PROGRAMS))
