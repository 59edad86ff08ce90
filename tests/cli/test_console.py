"""Tables for people: laid out on a terminal, a line for each row off it."""

from __future__ import annotations

import re

import pytest
from rich.cells import cell_len

from manyhands.cli.console import _pieces, print_table
from manyhands.cli.federation.admin import _show_status
from manyhands.formatting import TextTable

TABLE = TextTable(["figure", "run one", "run two"], [["FID", "0.1 ± 0.02 *", "12"], ["[bold]KID[/]", "-", "1,234"]])
WORDS = TextTable((), [["digits", "one two three " * 9 + "end"], ["letters", "short"]], left=2)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "30")


def printed(table: TextTable, capsys: pytest.CaptureFixture[str], note: str = "") -> list[str]:
    print_table(table, note)
    return re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()


def test_off_a_terminal_each_row_is_one_line_whatever_its_width(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(TABLE, capsys, "a note") == [
        "figure             run one  run two",
        "FID           0.1 ± 0.02 *       12",
        "[bold]KID[/]             -    1,234",
        "a note",
    ]
    first, second = printed(WORDS, capsys)
    assert first.endswith("end")
    assert second == "letters  short"
    assert printed(TextTable((), []), capsys) == []


def test_a_terminal_gets_pieces_that_fit_it_and_words_wrap(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(TABLE, capsys)
    assert all(cell_len(line) <= 30 for line in lines)
    assert [line.split()[0] for line in lines if line.strip()].count("figure") == 2, "the first column is in each piece"
    wrapped = printed(WORDS, capsys)
    assert all(cell_len(line) <= 30 for line in wrapped)
    assert " ".join(wrapped).split().count("three") == 9


def test_columns_go_into_as_few_pieces_as_fit() -> None:
    assert _pieces([10, 10, 10], 80) == [[0, 1, 2]]
    assert _pieces([10, 30, 30, 30], 80) == [[0, 1, 2], [0, 3]]
    assert _pieces([10, 100, 5], 80) == [[0, 1], [0, 2]]
    assert _pieces([10, 100], 80, left=2) == [[0, 1]]


def test_what_a_server_sends_as_status_cannot_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run = {"run": "a\x1b[2J", "stage": "training", "why": "", "round": 1, "rounds": 2, "bytes_up": 10,
           "bytes_down": 2000, "loss": 0.5, "seconds_left": 240.0}  # fmt: skip
    sites = {"north\x07": "[red]trains", "b": "x\x1b]0;title\x07"}
    running = {"job": "0123456789", "name": "a\x1b[2J", "stage": "RUNNING", "why": "", "run": run, "sites": sites}
    failed = {"job": "9876543210", "name": "b", "stage": "FINISHED:EXECUTION_EXCEPTION", "why": "c: \x1b[2Jno images"}
    busy = {"job": "x", "name": "c", "stage": "RUNNING", "why": "", "busy": True}
    _show_status({"sites": {"north\x07": 1.0, "b": 2.0}, "jobs": [failed, running, busy]})
    assert capsys.readouterr().out.splitlines() == [
        "connected sites: north?, b",
        "b (98765432): FINISHED:EXECUTION_EXCEPTION: c: ?[2Jno images",
        "a?[2J (01234567): training, 1 of 2 rounds, loss 0.5000, 10 B up, 2.0 kB down, about 4 min left",
        "north?  [red]trains",
        "b       x?]0;title?",
        "c (x): RUNNING, the server computes",
    ]
    _show_status({"sites": {}, "jobs": []})
    assert capsys.readouterr().out == "connected sites: none\n"
