from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyhands.cli.options import JsonOption, RunArgument
from manyhands.cli.output import show_ended
from manyhands.errors import RecipeError

if TYPE_CHECKING:
    pass


def evaluate(
    run_folder: RunArgument,
    data: Annotated[
        str, typer.Option(help="A folder of images, or 'recipe' for what it deals; its silos' own if not given.")
    ] = "",
    images: Annotated[
        int, typer.Option(min=12, max=1_000_000, help="How many samples, at most as many as are held out.")
    ] = 1000,
    features: Annotated[str, typer.Option(help="classifier, or inception:PATH.")] = "classifier",
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Draw so often; figures are means, with their deviation.")
    ] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Steps down the chain; as in the recipe if not given.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=100, help="As in the recipe if not given.")] = None,
    cas: Annotated[bool, typer.Option("--cas/--no-cas", help="Train a classifier on the samples alone.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Measure a finished run; the figures go into its report."""
    from pydantic import ValidationError

    from manyhands.evaluation.evaluator import Evaluation
    from manyhands.runs.finished import evaluate as measure
    from manyhands.runs.run_folder import RunFolder

    try:
        told = Evaluation(images=images, features=features, seeds=seeds, cas=cas)
    except ValidationError as error:
        raise RecipeError(f"--features {features}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    sampling = {name: value for name, value in {"steps": steps, "guidance": guidance}.items() if value is not None}
    if data and data != "recipe" and not Path(data).is_dir():
        raise RecipeError(f"--data {data}: there is no such folder")
    measure(RunFolder(run_folder), told, data, **sampling)
    show_ended(run_folder, as_json=as_json)
