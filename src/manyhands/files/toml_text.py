"""TOML that anybody may have written: it is read within bounds, and what is beyond them is refused by name."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from manyhands.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1 << 20
"""Of a file or a text."""
MAX_DEPTH = 32
"""Tables in tables, and parts of a dotted key."""
_KEY = r"""(?:(?<![A-Za-z0-9_-])[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""
_LONG_KEY = re.compile(rf"(?:{_KEY}\.[ \t]*+){{{MAX_DEPTH}}}")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a file; ``what`` says in errors what it should have been."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is no TOML file: {error}") from None
    return parse_toml(text, str(path))


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of a text, or a ``RecipeError`` where it is no TOML, too long, too deep, or has too large a number.

    Nothing else is raised, and the time that it takes grows with the length of the text.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise RecipeError(f"{where}: is no text: it holds half a character") from None
    if size > MAX_BYTES:
        raise RecipeError(f"{where}: has {size:,} bytes; {MAX_BYTES:,} are the most")
    if _LONG_KEY.search(text):
        raise RecipeError(f"{where}: has a key of more than {MAX_DEPTH} parts")
    try:
        told = tomllib.loads(text)
    except RecursionError:
        raise RecipeError(f"{where}: is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:  # no TOML, or a number of thousands of digits
        raise RecipeError(f"{where}: is no TOML file: {error}") from None
    _check_bounds(told, where)
    return told


def _check_bounds(told: dict[str, Any], where: str) -> None:
    level: list[Any] = [told]
    for _ in range(MAX_DEPTH):
        inner = [value for each in level for value in (each.values() if isinstance(each, dict) else each)]
        if any(type(value) is int and not -(1 << 63) <= value < 1 << 63 for value in inner):
            raise RecipeError(f"{where}: has a whole number beyond 64 bits")
        level = [value for value in inner if isinstance(value, dict | list)]
    if level:
        raise RecipeError(f"{where}: is nested more than {MAX_DEPTH} deep")
