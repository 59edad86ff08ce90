"""A job's process: begun again if a signal killed it that FLARE did not send, and over if it ended by itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nvflare")

from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobReturnCode

from manyhands.federation.job import launchers
from manyhands.federation.job.folder import DONE, MARK
from manyhands.federation.job.launchers import RestartingHandle, ServerLauncher, ServerResumer, SiteLauncher

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

    def __init__(self, folder: Path) -> None:
        self.begun: SimpleQueue[FakeProcess] = SimpleQueue()
        self.mark = folder / MARK
        self.mark.write_text("{}")
        begin: Callable[[], object] = self._begin
        self.handle = RestartingHandle(begin, self.mark)  # type: ignore[arg-type] # it answers as a handle does

    def _begin(self) -> FakeProcess:
        process = FakeProcess()
        self.begun.put(process)
        return process

    def process(self) -> FakeProcess:
        """The next process that is begun."""
        return self.begun.get(timeout=SECONDS)

    def is_over(self) -> bool:
        """Whether the job ends."""
        ended = threading.Thread(target=self.handle.wait, daemon=True)
        ended.start()
        ended.join(SECONDS)
        return not ended.is_alive()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    monkeypatch.setattr(launchers, "MIN_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(launchers, "MAX_WAIT_SECONDS", 0.002)
    return World(tmp_path)


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGSEGV, 128 + signal.SIGKILL])
def test_a_process_that_a_signal_killed_is_begun_again_each_time(world: World, code: int) -> None:
    for _ in range(3):
        world.process().end(code)
    last = world.process()
    assert world.handle.poll() == JobReturnCode.UNKNOWN
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


def test_the_wait_grows_up_to_its_limit_unless_the_process_was_healthy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now, waits = [0.0], list[float]()
    monkeypatch.setattr(launchers.time, "monotonic", lambda: now[0])
    world = World(tmp_path)
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


def test_a_process_that_was_killed_after_it_had_done_its_part_is_not_begun_again(world: World) -> None:
    process = world.process()
    world.mark.with_name(DONE).touch()
    process.end(-signal.SIGKILL)
    assert world.is_over()
    assert world.handle.poll() == JobReturnCode.SUCCESS
    assert world.begun.empty()


@pytest.mark.parametrize("keeps_mark", [False, True])
def test_the_mark_goes_with_the_job_except_at_the_server(tmp_path: Path, keeps_mark: bool) -> None:
    (mark := tmp_path / MARK).write_text("{}")
    process = FakeProcess()
    handle = RestartingHandle(lambda: process, mark, keeps_mark=keeps_mark)  # type: ignore[arg-type, return-value]
    process.end(1)
    handle.wait()
    assert mark.exists() == keeps_mark == ServerLauncher.keeps_mark & keeps_mark
    assert not SiteLauncher.keeps_mark


class JobRunner:
    """What FLARE's runner of jobs knows of the sites of which it still waits for a word."""

    def __init__(self) -> None:
        self.pending: dict[str, set[str]] = {"another": {"a", "b"}}

    def restore_running_job(self, job: str, clients: dict[str, Any], *_: object) -> None:
        self.pending[job] = set(clients)

    def resolve_client_outcome(self, job: str, site: str) -> None:
        self.pending[job].discard(site)


def test_a_site_is_not_asked_again_for_what_it_told_the_server_that_was_killed() -> None:
    runner, resumer, context = JobRunner(), ServerResumer(), FLContext()
    engine = SimpleNamespace(job_runner=runner, run_processes={"another": {}})
    context.get_engine = lambda: engine  # type: ignore[method-assign]
    context.get_peer_context = lambda: SimpleNamespace(get_identity_name=lambda: "a")  # type: ignore[method-assign]
    clients = [{"name": site, "token": site, "fqcn": site, "is_leaf": True} for site in "ab"]
    resumer.resume("job", {"job_clients": clients}, context)
    engine.run_processes["job"] = {}
    resumer._resolve("", context)
    assert runner.pending == {"job": {"a", "b"}, "another": {"a", "b"}}  # the run has not ended at the server
    del engine.run_processes["job"], engine.run_processes["another"]
    resumer._resolve("", context)
    assert runner.pending == {"job": {"b"}, "another": {"a", "b"}}  # and another job was not resumed
