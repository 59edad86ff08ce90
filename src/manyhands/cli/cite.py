from __future__ import annotations

import typer

from manyhands.cli.options import JsonOption, RunArgument
from manyhands.files.strict_json import finite_json


def cite(run_folder: RunArgument, as_json: JsonOption = False) -> None:
    """Print the papers that the parts of a run come from."""
    from manyhands.runs.citation import citations
    from manyhands.runs.recipe_file import specs_in
    from manyhands.runs.run_folder import RunFolder

    papers = citations(*specs_in(RunFolder(run_folder).recipe, str(run_folder)))
    typer.echo(finite_json({"papers": papers}) if as_json else "\n".join(papers))
