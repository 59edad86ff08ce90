from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from manyhands.cli.options import JsonOption
from manyhands.cli.output import wrapped
from manyhands.files.strict_json import kept_json
from manyhands.runs.shipped import shipped

if TYPE_CHECKING:
    pass


def recipes(as_json: JsonOption = False) -> None:
    """List the shipped recipes."""
    told = {path.stem: _first_words(path) for path in shipped()}
    typer.echo(kept_json(told) if as_json else "\n".join(wrapped(words, f"{name:21}") for name, words in told.items()))


def _first_words(path: Path) -> str:
    """The first sentence of a recipe's header, as far as its first semicolon."""
    header = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return re.split(r"; |(?<! al)\. ", " ".join(line.lstrip("# ") for line in header), maxsplit=1)[0]
