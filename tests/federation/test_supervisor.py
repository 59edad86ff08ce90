"""A worker is ended in time, also one that does not want to."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from manyhands.federation import supervisor

STUBBORN = """import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
sys.stdin.read()"""


@pytest.mark.parametrize("program", ["print('ready', flush=True); input()", STUBBORN], ids=["ends", "stubborn"])
def test_a_worker_ends_when_its_supervisor_says_so(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE", 0.2)
    worker = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    assert worker.stdout.readline()
    began = time.monotonic()
    supervisor._end(worker)
    assert worker.poll() is not None
    assert time.monotonic() - began < 2
    for pipe in (worker.stdin, worker.stdout):
        assert pipe is not None
        pipe.close()


def test_the_grace_leaves_a_second_of_the_three_that_are_promised() -> None:
    assert supervisor.GRACE <= 2


@pytest.mark.parametrize(("environment", "message"), [({}, "interrupted\n"), ({supervisor.WORKER: "1"}, "")])
def test_an_interrupt_is_printed_by_the_supervisor_and_not_by_its_worker_again(
    environment: dict[str, str], message: str
) -> None:
    code = "import signal, manyhands.cli.app as cli\ncli.app = lambda: signal.raise_signal(signal.SIGINT)\ncli.main()"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (130, message)
