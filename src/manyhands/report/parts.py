"""The parts that several sections of a page are made of, as plain values."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, NamedTuple

from manyhands.formatting import TextTable


class Picture(NamedTuple):
    """An image that is embedded in the page: its description, and its PNG file in base64.

    Args:
        about: The description.
        png: The PNG file in base64.
    """

    about: str
    png: str


class Card(NamedTuple):
    """A figure in large type: its name, its value, and, of a measured one, its deviation and that of real images.

    Args:
        name: The name.
        value: The value.
        spread: The deviation; empty without one.
        floor: The value of real images; empty without one.
    """

    name: str
    value: str
    spread: str = ""
    floor: str = ""


def picture(path: Path, about: str) -> Picture:
    """Read a PNG file."""
    return Picture(about, base64.b64encode(path.read_bytes()).decode())


def fields(value: Any) -> TextTable:
    """Nested fields as a table of dotted names and values."""
    return TextTable(["field", "value"], _flat(value), left=2)


def _flat(value: Any, where: str = "") -> list[list[str]]:
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _flat(inner, f"{where}.{key}".strip("."))]
    return [[where, str(value)]]
