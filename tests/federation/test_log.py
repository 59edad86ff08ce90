"""What is said to people is printable and short, and saying it ends nothing."""

from __future__ import annotations

import io
import os

import pytest

from manyhands.federation.log import MAX_LINE_CHARACTERS, MAX_LINES_PER_PEER, WINDOW_SECONDS, PeerLog, log, root_cause


@pytest.mark.parametrize("code", ["utf-8", "ascii", "latin-1"])
def test_whatever_is_said_can_be_printed(code: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, code, write_through=True)
    log("\x1b[2J\ud800\n\u202e é 手" + "x" * 10**6, stream)
    line = raw.getvalue()
    assert len(line) < 2 * MAX_LINE_CHARACTERS
    assert b"\x1b" not in line
    assert line.count(b"\n") == 1


def test_a_reader_who_has_gone_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", closefd=False) as pipe:
        log("nobody hears this", pipe)
        with pytest.raises(BrokenPipeError):
            pipe.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)
    shut = io.StringIO()
    shut.close()
    log("nor this", shut)


def test_of_too_many_lines_of_one_peer_the_number_is_said() -> None:
    lines, now = list[str](), [0.0]
    peer_log = PeerLog(lines.append, lambda: now[0])
    for i in range(1000):
        peer_log("a", f"line {i}")
    peer_log("b", "another")
    assert lines == [*(f"a: line {i}" for i in range(MAX_LINES_PER_PEER)), "b: another"]
    now[0] = WINDOW_SECONDS
    peer_log("a", "later")
    assert lines[-2:] == [f"a: {1000 - MAX_LINES_PER_PEER} more such lines were left out", "a: later"]


def test_of_the_logs_of_a_job_our_first_error_is_the_cause_or_else_that_of_flare() -> None:
    def line(logger: str, level: str, text: str) -> str:
        return f"2026-11-29 12:00:00,000 - {logger} - {level} - {text}\n"

    flare = line("CoreCell", "ERROR", "no connection") + line("JobRunner", "ERROR", "the job has ended")
    ours = line("RunSite", "INFO", "fine - ERROR - is a word") + line("RunSite", "ERROR", "\x1b[2Jno file - ERROR - x")
    logs = {"server": flare, "a": ours + line("RunSite", "ERROR", "more"), "b": line("RunSite", "ERROR", "a has gone")}
    assert root_cause(logs) == "a: ?[2Jno file - ERROR - x"
    assert root_cause({"server": flare}) == "server: the job has ended"
    assert root_cause({"server": line("RunServer", "INFO", "fine")}) == root_cause({}) == ""
