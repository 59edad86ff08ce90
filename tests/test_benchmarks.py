"""benchmarks/ is in two: programs, and the harness that they share."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import quick

FOLDER = Path(__file__).parents[1] / "benchmarks"
PARTS_OF = {"huscf": {"cutting", "leaking", "throttled"}}
"""The one program that also runs others as parts of its own."""


def imported(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module))
    return modules


def test_a_benchmark_that_is_not_there_is_named() -> None:
    with pytest.raises(SystemExit, match="nosuch: there is no such benchmark; known: bytes, "):
        quick.main(["nosuch"])


def test_programs_share_by_the_harness_alone() -> None:
    programs = {path.stem: path for path in FOLDER.glob("*.py")}
    for name, path in programs.items():
        assert 'if __name__ == "__main__":' in path.read_text(), f"{name}: what is no program belongs into harness/"
        assert imported(path) & programs.keys() - {"memory", "bytes"} == PARTS_OF.get(name, set()), name
    for path in (FOLDER / "harness").glob("*.py"):
        assert not imported(path) & programs.keys(), path.name
