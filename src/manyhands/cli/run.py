from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyhands.cli.interrupt import Interrupted
from manyhands.cli.options import JsonOption
from manyhands.cli.output import show_comparison, show_ended, show_trade, wrapped
from manyhands.errors import RecipeError
from manyhands.files.strict_json import kept_json
from manyhands.runs.shipped import recipe_path

if TYPE_CHECKING:
    from manyhands.runs.recipe import Recipe
    from manyhands.runs.sweep import Sweep


def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a shipped recipe.")],
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/<name> if not given.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field: a.b=c, as often as needed.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped, or begin.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and what would be sent.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Train so often, with seed, seed + 1, ...")] = 1,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write RUN/tensorboard, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train as a recipe says, and measure what came of it."""
    from manyhands.runs.sweep import load_sweep, write_index

    sweep = load_sweep(recipe_path(recipe), changes or [])
    if dry_run:
        _show_plans(sweep, as_json=as_json)
        return
    runs = sweep.runs(seeds)
    if len(runs) > 1 and not all(each.recipe.evaluation.images for each in runs):
        raise RecipeError("several runs are told apart by what is measured, but evaluation.images is 0")
    folder = out or Path("runs") / sweep.name
    if sweep.swept:
        write_index(folder, runs, resume=resume)
    for each in runs:
        _train(each.recipe, folder / each.folder, resume=resume, quiet=as_json, board=tensorboard)
    if len(runs) > 1:
        show_comparison([folder / each.folder for each in runs], unranked=sweep.swept, as_json=as_json)
        if "method.cut" in sweep.variants[0].values:
            show_trade(folder, quiet=as_json)
    else:
        show_ended(folder / runs[0].folder, as_json=as_json)


def _train(told: Recipe, folder: Path, *, resume: bool, quiet: bool, board: bool) -> None:
    from manyhands.runs.compose import compose
    from manyhands.runs.progress import Progress
    from manyhands.runs.run_folder import RunFolder

    experiment = compose(told, folder, resume=resume)
    for line in [f"skipped {name}" for name in experiment.skipped]:
        typer.echo(line, err=True)
    before = experiment.method.warnings(experiment.roster)
    for line in before:
        typer.echo(f"warning: {line}", err=True)
    watchers: list[Any] = [Progress(told, quiet=quiet)]
    if board:
        from manyhands.runs.tensorboard import TensorBoardLogger

        watchers.append(TensorBoardLogger(RunFolder(folder)))
    try:
        for done in experiment:
            for watcher in watchers:
                watcher.show(done)
    except Interrupted:
        raise Interrupted(f"; {RunFolder(folder).kept} rounds are kept in {folder}: --resume goes on") from None
    finally:
        for watcher in watchers:
            watcher.close()
    problems = experiment.run_folder.problems if experiment.run_folder else []
    for problem in [each for each in problems if each not in before]:
        typer.echo(f"warning: {problem}", err=True)


def _show_plans(sweep: Sweep, *, as_json: bool) -> None:
    """All of a recipe and of what it would send; of the runs of a sweep, only how much."""
    import tomli_w

    plans = [_plan_of(run.recipe) for run in sweep.variants]
    if sweep.swept and as_json:
        places = [{"folder": run.folder, "values": run.values} for run in sweep.variants]
        typer.echo(kept_json({"runs": [place | plan for place, plan in zip(places, plans, strict=True)]}))
    elif sweep.swept:
        for run, plan in zip(sweep.variants, plans, strict=True):
            lines = plan["gives_away"] + (plan["sizes"] or plan["plan"])
            typer.echo("\n".join([run.folder, *[wrapped(line, "    ") for line in lines]]))
    elif as_json:
        typer.echo(kept_json(plans[0]))
    else:
        first, after = (
            "\n".join(wrapped(line, "# ") for line in lines)
            for lines in (plans[0]["gives_away"], plans[0]["plan"] + plans[0]["sizes"])
        )
        recipe = tomli_w.dumps(plans[0]["recipe"])
        typer.echo("\n".join([*([f"{first}\n"] if first else []), recipe, after]))


def _plan_of(told: Recipe) -> dict[str, Any]:
    """A recipe in full, and what it would send; what gives its images away stands apart, to be said first."""
    from manyhands.messages.outgoing.summary import given_away

    plan, sizes = told.method.plan(), told.method.cost_lines(told.partition.silos, told.sampling)
    first = given_away(plan.outgoing)
    return {"gives_away": first, "recipe": told.resolved(), "plan": plan.words()[len(first) :], "sizes": sizes}
