"""Writes the classes of the registry into ``__init__.pyi``, the list of public names: python tools/public_names.py."""

from __future__ import annotations

from pathlib import Path

from manyhands.registry import METHODS, MODELS, PARTITIONS, SOURCES

STUB = Path(__file__).resolve().parents[1] / "src" / "manyhands" / "__init__.pyi"
HEAD = "# isort: split\n# Of the registry; python tools/public_names.py writes them.\n"


def stub() -> str:
    """The stub with a line for each class of the registry below those that are written by hand."""
    by_hand, _, _ = STUB.read_text().partition(HEAD)
    paths = [path for registry in (METHODS, MODELS, SOURCES, PARTITIONS) for path in registry.classes.values()]
    lines = []
    for module, name in sorted(path.split(":") for path in paths):
        lines.append(f"from {module.removeprefix('manyhands')} import {name} as {name}\n")
    return by_hand + HEAD + "".join(lines)


if __name__ == "__main__":
    STUB.write_text(stub())
