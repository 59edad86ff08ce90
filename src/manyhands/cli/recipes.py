from __future__ import annotations

import itertools
import re
from pathlib import Path

import typer

from manyhands.cli.console import print_table
from manyhands.cli.options import JsonOption
from manyhands.files.strict_json import finite_json
from manyhands.formatting import TextTable
from manyhands.runs.shipped import shipped


def recipes(as_json: JsonOption = False) -> None:
    """List the recipes that come with Manyhands."""
    descriptions = {path.stem: _description(path) for path in shipped()}
    if as_json:
        typer.echo(finite_json(descriptions))
    else:
        print_table(TextTable((), list(descriptions.items()), left=2))


def _description(path: Path) -> str:
    """The first sentence of a recipe's header, up to its first semicolon."""
    header = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return re.split(r"; |(?<! al)\. ", " ".join(line.lstrip("# ") for line in header), maxsplit=1)[0]
