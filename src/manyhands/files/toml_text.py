"""Reads TOML from untrusted sources: what is too long, too deep or too large is refused with the reason."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from manyhands.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1 << 20
"""The most bytes of a file or a text."""
MAX_DEPTH = 32
"""The deepest nesting of tables, and the most parts of a dotted key."""
_KEY = r"""(?:(?<![A-Za-z0-9_-])[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""
_LONG_KEY = re.compile(rf"(?:{_KEY}\.[ \t]*+){{{MAX_DEPTH}}}")


def read_toml(path: Path, expected: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.
        expected: What the file should be, for errors: "recipe", "policy".
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such {expected}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is not a TOML file: {error}") from None
    return parse_toml(text, str(path))


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Parse TOML; raise ``RecipeError`` if it is invalid, too long, too deep, or holds too large a number.

    It raises nothing else, and its running time grows no faster than the length of the text.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise RecipeError(f"{where}: is not valid text: it holds half a character") from None
    if size > MAX_BYTES:
        raise RecipeError(f"{where}: has {size:,} bytes; at most {MAX_BYTES:,} are allowed")
    if _LONG_KEY.search(text):
        raise RecipeError(f"{where}: has a key of more than {MAX_DEPTH} parts")
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise RecipeError(f"{where}: is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:  # not TOML, or a number of thousands of digits
        raise RecipeError(f"{where}: is not a TOML file: {error}") from None
    _check_bounds(tables, where)
    return tables


def _check_bounds(tables: dict[str, Any], where: str) -> None:
    level: list[Any] = [tables]
    for _ in range(MAX_DEPTH):
        inner = [value for outer in level for value in (outer.values() if isinstance(outer, dict) else outer)]
        if any(type(value) is int and not -(1 << 63) <= value < 1 << 63 for value in inner):
            raise RecipeError(f"{where}: has a whole number beyond 64 bits")
        level = [value for value in inner if isinstance(value, dict | list)]
    if level:
        raise RecipeError(f"{where}: is nested more than {MAX_DEPTH} deep")
