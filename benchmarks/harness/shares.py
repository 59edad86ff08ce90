"""A share of a core for each process, and links of so many bytes a second: slow machines on a fast one."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

QUOTA = 1_000
"""Microseconds that a process has in a row, the least that the system knows; its period follows from its share.

A process that has waited begins with all of it at once, as no slow machine does: the less, the better.
"""
PERIOD = 10_000
"""Microseconds of a period where processes are stopped and go on instead, a quarter of it."""
WEIGHT = 8192
"""Against 1,024 of any other: the share is what slows it down, not its neighbours."""
CHUNK = 1 << 16


class Shares:
    """Lets each process have a share of a core, by control groups where they may be made, else coarsely, by stops."""

    def __init__(self) -> None:
        self._groups: dict[int, Path] = {}
        self._stopped: dict[int, float] = {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def way(self) -> str:
        """How it is done."""
        return "stop and go on" if self._stopped else "control groups"

    def set(self, pid: int, share: float) -> None:
        """From now on."""
        with suppress(OSError):
            self._in_group(pid, share)
            return
        self._stopped[pid] = share
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        for group in self._groups.values():
            for _ in range(50):  # until its process has gone
                with suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.1)

    def _in_group(self, pid: int, share: float) -> None:
        old = Path("/sys/fs/cgroup/cpu")
        group = self._groups.get(pid) or (old if old.exists() else old.parent) / f"manyhands-{os.getpid()}-{pid}"
        if pid not in self._groups:
            group.mkdir()
            self._groups[pid] = group
        period = round(QUOTA / share)
        if old.exists():
            (group / "cpu.cfs_period_us").write_text(str(period))
            (group / "cpu.cfs_quota_us").write_text(str(QUOTA))
            (group / "cpu.shares").write_text(str(WEIGHT))
        else:
            (group / "cpu.max").write_text(f"{QUOTA} {period}")
        (group / "cgroup.procs").write_text(str(pid))

    def _beat(self) -> None:
        """Each process goes on for its share of a period, and is stopped for the rest."""
        period = 4 * PERIOD / 1e6
        while not self._over.is_set():
            began, order = time.perf_counter(), sorted(self._stopped.items(), key=lambda item: item[1])
            for pid, _ in order:
                _signal(pid, signal.SIGCONT)
            for pid, share in order:
                time.sleep(max(began + share * period - time.perf_counter(), 0))
                if share < 1:
                    _signal(pid, signal.SIGSTOP)
            time.sleep(max(began + period - time.perf_counter(), 0))
        for pid in self._stopped:
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Shaped:
    """A socket that sends so many bytes a second; a chunk arrives when the time that it takes is over."""

    def __init__(self, stream: socket.socket, rate: float) -> None:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream, self.rate = stream, rate
        self.recv_into, self.settimeout = stream.recv_into, stream.settimeout

    def sendall(self, data: bytes | memoryview, /) -> None:
        """Send all of it, in its time."""
        view, due = memoryview(data), time.perf_counter()
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            due += len(chunk) / self.rate
            time.sleep(max(due - time.perf_counter(), 0))
            self.stream.sendall(chunk)
