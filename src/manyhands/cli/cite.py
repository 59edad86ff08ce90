from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from manyhands.cli.options import JsonOption, RunArgument
from manyhands.files.strict_json import kept_json

if TYPE_CHECKING:
    pass


def cite(run_folder: RunArgument, as_json: JsonOption = False) -> None:
    """Print the papers behind the parts of a run."""
    from manyhands.runs.citation import citations
    from manyhands.runs.recipe import specs_in
    from manyhands.runs.run_folder import RunFolder

    found = citations(*specs_in(RunFolder(run_folder).recipe, str(run_folder)))
    typer.echo(kept_json({"papers": found}) if as_json else "\n".join(found))
