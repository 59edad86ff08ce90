"""A job's process: begun again if a signal killed it that FLARE did not send, and over if it ended by itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import pytest

pytest.importorskip("nvflare")

from nvflare.apis.job_launcher_spec import JobReturnCode

from manyhands.federation.job import launchers
from manyhands.federation.job.launchers import MARK, RestartingHandle, ServerLauncher, SiteLauncher

SECONDS = 20.0


class FakeProcess:
    """Stands in for FLARE's handle of a process; it ends when a test says so."""

    def __init__(self) -> None:
        self.adapter = self
        self.code: int | None = None
        self.was_terminated = False
        self._ended = threading.Event()

    def end(self, code: int) -> None:
        self.code = code
        self._ended.set()

    def terminate(self) -> None:
        self.was_terminated = True
        self.end(-signal.SIGTERM)

    def wait(self) -> None:
        assert self._ended.wait(SECONDS)

    def poll(self) -> int | None:
        return self.code


class World:
    """A job whose processes a test kills."""

    def __init__(self) -> None:
        self.begun: SimpleQueue[FakeProcess] = SimpleQueue()
        self.ends = 0
        begin: Callable[[], object] = self._begin
        self.handle = RestartingHandle(begin, self._end)  # type: ignore[arg-type] # it answers as a handle does

    def _end(self) -> None:
        self.ends += 1

    def _begin(self) -> FakeProcess:
        process = FakeProcess()
        self.begun.put(process)
        return process

    def process(self) -> FakeProcess:
        """The next process that is begun."""
        return self.begun.get(timeout=SECONDS)

    def is_over(self) -> bool:
        """Whether the job ends, and says so once."""
        ended = threading.Thread(target=self.handle.wait, daemon=True)
        ended.start()
        ended.join(SECONDS)
        return not ended.is_alive() and self.ends == 1


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(launchers, "MIN_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(launchers, "MAX_WAIT_SECONDS", 0.002)
    return World()


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGSEGV, 128 + signal.SIGKILL])
def test_a_process_that_a_signal_killed_is_begun_again_each_time(world: World, code: int) -> None:
    for _ in range(3):
        world.process().end(code)
    last = world.process()
    assert world.handle.poll() == JobReturnCode.UNKNOWN
    assert world.ends == 0
    last.end(0)
    assert world.is_over()
    assert world.handle.poll() == 0
    assert world.begun.empty()


@pytest.mark.parametrize("code", [0, 1, 101, 128])
def test_a_process_that_ends_by_itself_is_not_begun_again(world: World, code: int) -> None:
    world.process().end(code)
    assert world.is_over()
    assert world.handle.poll() == code
    assert world.begun.empty()


def test_what_flare_ends_stays_ended(world: World) -> None:
    process = world.process()
    world.handle.terminate()
    assert world.is_over()
    assert process.was_terminated
    assert world.begun.empty()


def test_what_flare_ends_between_two_processes_stays_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "MAX_WAIT_SECONDS", 10 * SECONDS)
    monkeypatch.setattr(launchers, "MIN_WAIT_SECONDS", 10 * SECONDS)
    waits = threading.Event()
    stop = world.handle._stop.wait

    def wait(seconds: float | None = None) -> bool:
        waits.set()
        return stop(seconds)

    monkeypatch.setattr(world.handle._stop, "wait", wait)
    world.process().end(-signal.SIGKILL)
    assert waits.wait(SECONDS)
    world.handle.terminate()
    assert world.is_over()
    assert world.begun.empty()


def test_the_wait_grows_up_to_its_limit_unless_the_process_was_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = [0.0], list[float]()
    monkeypatch.setattr(launchers.time, "monotonic", lambda: now[0])
    world = World()
    monkeypatch.setattr(world.handle._stop, "wait", lambda seconds: waits.append(seconds))
    for number in range(6):
        process = world.process()
        now[0] += launchers.HEALTHY_SECONDS + 1 if number == 4 else 0.0
        process.end(-signal.SIGKILL)
    world.process().end(0)
    assert world.is_over()
    assert waits[:4] == [min(launchers.MIN_WAIT_SECONDS * 2**n, launchers.MAX_WAIT_SECONDS) for n in (1, 2, 3, 4)]
    assert waits[4] == launchers.MIN_WAIT_SECONDS
    assert max(waits) <= launchers.MAX_WAIT_SECONDS


@pytest.mark.parametrize(("launcher", "stays"), [(SiteLauncher, False), (ServerLauncher, True)])
def test_a_site_removes_its_mark_and_the_server_keeps_it_until_its_results_are_stored(
    tmp_path: Path, launcher: Callable[[], SiteLauncher | ServerLauncher], stays: bool
) -> None:
    (mark := tmp_path / MARK).write_text("{}")
    for _ in range(2):
        launcher().forget(mark)
        assert mark.exists() == stays
