"""The command as it is typed, in this process: PyTorch is imported once, not for each line."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
from pathlib import Path
from unittest import mock

import pytest

from manyhands.cli.app import main


def manyhands(*words: str, where: Path) -> subprocess.CompletedProcess[str]:
    """What a process of its own would print in this folder, and its exit code."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (
            contextlib.chdir(where),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch("sys.argv", ["manyhands", *words]),
            pytest.raises(SystemExit) as ended,
        ):
            main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(ended.value.code, int)
    return subprocess.CompletedProcess(words, ended.value.code, out.getvalue(), err.getvalue())
