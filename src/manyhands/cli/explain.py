from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from manyhands.cli.console import print_page, print_table
from manyhands.cli.options import completion
from manyhands.errors import RecipeError
from manyhands.formatting import TextTable
from manyhands.runs.shipped import shipped_folder


def explain(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[PAGE]",
            help="Name of the page. Without it, print a list of all pages.",
            autocompletion=completion(lambda: pages()),
        ),
    ] = "",
) -> None:
    """Print a page of the docs, such as what an error means."""
    known = pages()
    if not name:
        print_table(TextTable((), [(page, _heading(path)) for page, path in known.items()], left=2))
        return
    if name not in known:
        from manyhands.spec import suggest

        raise RecipeError(f"{name}: there is no such page; {suggest(name, list(known))}")
    print_page(known[name].read_text())


def pages() -> dict[str, Path]:
    """The pages by their names, first those of errors, whose list is called ``errors``."""
    folder = shipped_folder("docs")
    errors = {path.stem: path for path in sorted((folder / "errors").glob("*.md"))}
    errors["errors"] = errors.pop("index")
    return errors | {path.stem: path for path in sorted(folder.glob("*.md"))}


def _heading(path: Path) -> str:
    """The first line of a page."""
    first = path.read_text().split("\n", 1)[0]
    return re.sub(r"[`*]", "", first.lstrip("# "))
