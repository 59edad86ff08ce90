from __future__ import annotations

import itertools
import re
from pathlib import Path

import typer

from manyhands.cli.options import JsonOption
from manyhands.cli.output import wrapped
from manyhands.files.strict_json import finite_json
from manyhands.runs.shipped import shipped


def recipes(as_json: JsonOption = False) -> None:
    """List the recipes that come with Manyhands."""
    descriptions = {path.stem: _description(path) for path in shipped()}
    lines = [wrapped(description, f"{name:21}") for name, description in descriptions.items()]
    typer.echo(finite_json(descriptions) if as_json else "\n".join(lines))


def _description(path: Path) -> str:
    """The first sentence of a recipe's header, up to its first semicolon."""
    header = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return re.split(r"; |(?<! al)\. ", " ".join(line.lstrip("# ") for line in header), maxsplit=1)[0]
