from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manyhands.cli.options import GuidanceOption, JsonOption, RunArgument, StepsOption
from manyhands.cli.output import show_report
from manyhands.errors import RecipeError


def evaluate(
    run_folder: RunArgument,
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="Evaluate on the images of this folder. --data recipe: on the images that the recipe names. "
            "Default: the held-out images of the run's silos.",
        ),
    ] = "",
    images: Annotated[
        int,
        typer.Option(
            metavar="N", min=12, max=1_000_000, help="Number of samples; at most as many as there are held-out images."
        ),
    ] = 1000,
    features: Annotated[
        str,
        typer.Option(
            metavar="FEATURES",
            help="Feature extractor: classifier or distortions (both are trained on the run's images), or "
            "inception:PATH (a weights file).",
        ),
    ] = "classifier",
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=1000,
            help="Sample N times, with seeds 0 to N - 1, and report mean and standard deviation.",
        ),
    ] = 1,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    cas: Annotated[
        bool,
        typer.Option(
            "--cas/--no-cas",
            help="Compute the classification accuracy score (CAS): train a classifier on samples, test it on held-out "
            "images.",
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a finished run, and write the metrics to its report."""
    from pydantic import ValidationError

    from manyhands.evaluation.spec import Evaluation
    from manyhands.runs.finished import evaluate as measure
    from manyhands.runs.run_folder import RunFolder

    try:
        evaluation = Evaluation.model_validate({"images": images, "features": features, "seeds": seeds, "cas": cas})
    except ValidationError as error:
        raise RecipeError(f"--features {features}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    sampling = {name: value for name, value in {"steps": steps, "guidance": guidance}.items() if value is not None}
    if data and data != "recipe" and not Path(data).is_dir():
        raise RecipeError(f"--data {data}: there is no such folder")
    measure(RunFolder(run_folder), evaluation, data, **sampling)
    show_report(run_folder, as_json=as_json)
