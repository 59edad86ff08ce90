"""A worker is ended in time, also one that does not want to."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from manyhands.federation import keeper

STUBBORN = """import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
sys.stdin.read()"""


@pytest.mark.parametrize("program", ["print('ready', flush=True); input()", STUBBORN], ids=["ends", "stubborn"])
def test_a_worker_ends_when_its_keeper_is_told_to(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "GRACE", 0.2)
    worker = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    assert worker.stdout.readline()
    began = time.monotonic()
    keeper._end(worker)
    assert worker.poll() is not None
    assert time.monotonic() - began < 2
    for pipe in (worker.stdin, worker.stdout):
        assert pipe is not None
        pipe.close()


def test_the_grace_leaves_a_second_of_the_three_that_are_promised() -> None:
    assert keeper.GRACE <= 2
