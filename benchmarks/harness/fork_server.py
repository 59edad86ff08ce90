"""A process that has imported PyTorch once, from which others are forked in milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkServerContext
from multiprocessing.util import Finalize
from pathlib import Path
from typing import IO, Any

FOLDER = Path(__file__).parents[1]
PRELOADED = [
    "diffusers.models.unets.unet_2d",
    "diffusers.schedulers.scheduling_ddim",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "sklearn.datasets",
    "manyhands.runs.experiment",
]


def context() -> ForkContext | ForkServerContext:
    """Forks off the server; a process that was forked off it has all imports, and forks itself."""
    if multiprocessing.parent_process() is not None:
        return multiprocessing.get_context("fork")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    return server


def printed(module: str, *words: str, fresh: bool) -> str:
    """What a program prints: of a process that begins with nothing, or forked, where its memory is not to be quoted."""
    if fresh:
        command = [sys.executable, "-m", module, *words]
        return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True).stdout
    process = ForkedModule(module, *words)
    lines = str(process.stdout.read())
    if code := process.wait():
        raise SystemExit(f"{module} {' '.join(words)}: ended with {code}")
    return lines


class ForkedModule:
    """``python -m MODULE WORDS``, forked, not started: lines go to its standard input and come from its output.

    Args:
        module: The module's name, which is run as a program.
        words: What its arguments are.
    """

    def __init__(self, module: str, *words: str) -> None:
        lines, stdin = multiprocessing.Pipe(duplex=False)
        stdout, printed = multiprocessing.Pipe(duplex=False)
        self._process = context().Process(target=_run, args=(module, words, lines, printed))
        self._process.start()
        Finalize(self, self._process.kill, exitpriority=1)  # a daemon would end with us, too, but can start no process
        lines.close()
        printed.close()
        self.stdin, self.stdout = _file(stdin, "w"), _file(stdout, "r")
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        """Its exit code, when it has ended."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for its end; its exit code."""
        self._process.join(seconds)
        return self.poll()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()


def _file(end: Connection, mode: str) -> IO[Any]:
    return os.fdopen(os.dup(end.fileno()), mode, buffering=1)


def _run(module: str, words: Sequence[str], lines: Connection, printed: Connection) -> None:
    sys.stdout.flush()
    os.dup2(lines.fileno(), 0)
    os.dup2(printed.fileno(), 1)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__")
    sys.stdout.flush()
