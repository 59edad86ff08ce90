"""FLARE's process of a party: it is started with the script of its kit, and ended with all that it has started."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from manyhands.errors import KitError
from manyhands.federation import parent
from manyhands.federation.kit import KEPT, Kit, Role

SAYS = 'echo "$PWD $NVFL_JOB_STORE_ROOT ${PATH%%:*}"\n'
STUBBORN = 'trap "" TERM\nbash -c \'trap "" TERM; echo $$; read < fifo\' &\nwait\n'


def kit(folder: Path, script: str, role: Role = "server") -> Kit:
    (folder / "startup").mkdir()
    (folder / "startup" / "sub_start.sh").write_text(script)
    os.mkfifo(folder / "fifo")
    return Kit(folder, role, role, "127.0.0.1", 1)


def first_line(path: Path) -> str:
    """Wait until the script has said something."""
    end = time.monotonic() + 20
    while not (text := path.read_text()).endswith("\n") and time.monotonic() < end:
        time.sleep(0.01)
    return text.splitlines()[0]


@pytest.mark.parametrize("role", ["server", "site"])
def test_it_is_started_in_its_kit_with_this_python_and_its_own_store_of_jobs(tmp_path: Path, role: Role) -> None:
    with (tmp_path / "log").open("wb") as log:
        assert parent.start(kit(tmp_path, SAYS, role), log).wait(20) == 0
    jobs = tmp_path / KEPT / parent.JOBS
    assert first_line(tmp_path / "log") == f"{tmp_path} {jobs} {Path(sys.executable).parent}"
    assert jobs.is_dir() == (role == "server")


def test_it_ends_with_all_that_it_has_started_though_they_would_rather_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent, "GRACE_SECONDS", 0.2)
    with (tmp_path / "log").open("wb") as log:
        process = parent.start(kit(tmp_path, STUBBORN), log)
    child = int(first_line(tmp_path / "log"))
    began = time.monotonic()
    parent.end(process)
    assert time.monotonic() - began < 5
    assert process.returncode is not None
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    parent.end(process)  # who has ended is ended


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_that_of_the_script(tmp_path: Path, code: int) -> None:
    assert parent.run(kit(tmp_path, f"exit {code}\n")) == code


def test_a_kit_without_its_script_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"startup/sub_start\.sh: is missing"):
        parent.start(Kit(tmp_path, "site", "a", "127.0.0.1", 1))
    assert not (tmp_path / KEPT).exists()
