"""The progress of preparing images: a bar on a terminal, a line now and then elsewhere, such as in a site's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from manyhands.data.sources.decoding import WATCHER

SECONDS = 10
"""How long no line is printed after a line, where there is no terminal."""


class PreparationProgress:
    """Shows how many pictures of each set are prepared, and the time left.

    Args:
        quiet: Whether nothing is printed.
        log: Called with each line, where there is a log instead of a terminal.
    """

    def __init__(self, *, quiet: bool = False, log: Callable[[str], None] | None = None) -> None:
        self.console = Console(file=sys.stderr, highlight=False, quiet=quiet)
        self._log = log or partial(self.console.print, soft_wrap=True)
        has_bars = self.console.is_terminal and not quiet and log is None
        columns = (TextColumn("preparing {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=self.console, disable=not has_bars)
        self._tasks: dict[str, TaskID] = {}
        self._began, self._printed = time.monotonic(), -float("inf")

    def show(self, name: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` pictures of a set are prepared."""
        if name not in self._tasks:
            self._bars.start()
            self._tasks[name] = self._bars.add_task(name, total=total)
            self._began, self._printed = time.monotonic(), -float("inf")
        self._bars.update(self._tasks[name], completed=done)
        now = time.monotonic()
        if self._bars.disable and (now - self._printed >= SECONDS or done == total):
            self._printed = now
            left = int((now - self._began) * (total - done) / done)
            self._log(f"preparing {name}: {done:,} of {total:,}, {left // 60}:{left % 60:02d} left")

    def close(self) -> None:
        """Leave the last state on the terminal."""
        self._bars.stop()


@contextmanager
def shown_preparation(*, quiet: bool = False, log: Callable[[str], None] | None = None) -> Iterator[None]:
    """Show the progress of images that are prepared inside; see ``PreparationProgress``."""
    progress = PreparationProgress(quiet=quiet, log=log)
    token = WATCHER.set(progress.show)
    try:
        yield
    finally:
        WATCHER.reset(token)
        progress.close()
