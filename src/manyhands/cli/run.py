from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyhands.cli.interrupt import Interrupted
from manyhands.cli.options import JsonOption, RecipeArgument, SetOption
from manyhands.cli.output import show_comparison, show_report, show_tradeoff, wrapped
from manyhands.errors import RecipeError
from manyhands.files.strict_json import finite_json
from manyhands.runs.shipped import recipe_path

if TYPE_CHECKING:
    from manyhands.runs.recipe import Recipe
    from manyhands.runs.sweep import Sweep


def run(
    recipe: RecipeArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder. Default: runs/<name of the recipe>.")
    ] = None,
    changes: SetOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue from the last checkpoint, or start. Repeat the --set of the first call."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the whole recipe and what would leave the silos; do not train.")
    ] = False,
    seeds: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Train with N seeds, the recipe's and the next ones, and compare."),
    ] = 1,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also log to the folder tensorboard/ of the run.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a generator as a recipe says, and evaluate it."""
    from manyhands.runs.sweep import check_parents, load_sweep, write_index

    sweep = load_sweep(recipe_path(recipe), changes or [])
    if dry_run:
        _show_plans(sweep, as_json=as_json)
        return
    runs = sweep.runs(seeds)
    if len(runs) > 1 and not all(run.recipe.evaluation.images for run in runs):
        raise RecipeError("--seeds and [sweep] compare runs by their metrics, but evaluation.images is 0")
    folder = out or Path("runs") / sweep.name
    check_parents(folder, runs)
    if sweep.is_swept:
        write_index(folder, runs, resume=resume)
    for run in runs:
        _train(run.recipe, folder / run.folder, resume=resume, quiet=as_json, tensorboard=tensorboard)
    if len(runs) > 1:
        show_comparison([folder / run.folder for run in runs], unranked=sweep.is_swept, as_json=as_json)
        if "method.cut" in sweep.variants[0].values:
            show_tradeoff(folder, quiet=as_json)
    else:
        show_report(folder / runs[0].folder, as_json=as_json)


def _train(recipe: Recipe, folder: Path, *, resume: bool, quiet: bool, tensorboard: bool) -> None:
    from manyhands.runs.compose import compose
    from manyhands.runs.preparation_progress import shown_preparation
    from manyhands.runs.progress import Progress
    from manyhands.runs.run_folder import RunFolder

    with shown_preparation(quiet=quiet):
        experiment = compose(recipe, folder, resume=resume)
    for line in [f"skipped {name}" for name in experiment.skipped]:
        typer.echo(line, err=True)
    for line in experiment.warnings:
        typer.echo(f"warning: {line}", err=True)
    watchers: list[Any] = [Progress(recipe, quiet=quiet)]
    if tensorboard:
        from manyhands.runs.tensorboard import TensorBoardLogger

        watchers.append(TensorBoardLogger(RunFolder(folder)))
    try:
        for closed_round in experiment:
            for watcher in watchers:
                watcher.show(closed_round)
    except Interrupted:
        raise Interrupted(
            f"; {RunFolder(folder).kept} rounds are kept in {folder}; --resume continues the run"
        ) from None
    finally:
        for watcher in watchers:
            watcher.close()
    problems = experiment.run_folder.problems if experiment.run_folder else []
    for problem in [problem for problem in problems if problem not in experiment.warnings]:
        typer.echo(f"warning: {problem}", err=True)


def _show_plans(sweep: Sweep, *, as_json: bool) -> None:
    """Print a recipe with what would leave the silos; of the runs of a sweep, only how much."""
    import tomli_w

    plans = [_plan_of(run.recipe) for run in sweep.variants]
    if sweep.is_swept and as_json:
        places = [{"folder": run.folder, "values": run.values} for run in sweep.variants]
        typer.echo(finite_json({"runs": [place | plan for place, plan in zip(places, plans, strict=True)]}))
    elif sweep.is_swept:
        for run, plan in zip(sweep.variants, plans, strict=True):
            lines = plan["gives_away"] + (plan["cost_lines"] or plan["plan"])
            typer.echo("\n".join([run.folder, *[wrapped(line, "    ") for line in lines]]))
    elif as_json:
        typer.echo(finite_json(plans[0]))
    else:
        first, after = (
            "\n".join(wrapped(line, "# ") for line in lines)
            for lines in (plans[0]["gives_away"], plans[0]["plan"] + plans[0]["cost_lines"])
        )
        text = tomli_w.dumps(plans[0]["recipe"])
        typer.echo("\n".join([*([f"{first}\n"] if first else []), text, after]))


def _plan_of(recipe: Recipe) -> dict[str, Any]:
    """The whole recipe and what would leave the silos; what gives images away is separate, to be printed first."""
    from manyhands.messages.outgoing.summary import given_away
    from manyhands.methods.base import plan_of
    from manyhands.models.network import check_denoiser

    check_denoiser(recipe.method.image_model)
    plan, cost_lines = plan_of(recipe.method), recipe.method.cost_lines(recipe.partition.silos, recipe.sampling)
    first = given_away(plan.outgoing)
    lines = plan.words()[len(first) :]
    return {"gives_away": first, "recipe": recipe.resolved(), "plan": lines, "cost_lines": cost_lines}
