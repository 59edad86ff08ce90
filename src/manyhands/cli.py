"""The command line. Everything heavy is imported in the command that needs it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional

import typer

from manyhands.errors import ManyhandsError, RecipeError, RunFolderError

if TYPE_CHECKING:
    from manyhands.models.generator import Generator
    from manyhands.recipe import Recipe

INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train one image generator across parties that may not pool their images.",
)
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a shipped recipe.")],
    out: Annotated[Optional[Path], typer.Option(help="The run folder; runs/<name> if not given.")] = None,  # noqa: UP045
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field: a.b=c, as often as needed.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped, or begin.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and what would be sent.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train as a recipe says."""
    from manyhands.recipe import load_recipe

    told = load_recipe(_recipe_path(recipe), changes or [])
    if dry_run:
        _show_plan(told, as_json=as_json)
        return
    folder = out or Path("runs") / told.name
    _train(told, folder, resume=resume, quiet=as_json)
    from manyhands.journal import RunFolder

    if as_json:
        typer.echo(json.dumps(RunFolder(folder).report))
        return
    typer.echo(f"samples  {folder / 'figures' / 'samples.png'}\nreport   {folder / 'report.html'}")
    if (folder / "model").exists():
        typer.echo(f"model    {folder / 'model'}")


@app.command()
def sample(
    run_folder: RunArgument,
    out: Annotated[Path, typer.Option(help="Where samples.safetensors and grid.png go.")],
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 64,
    label: Annotated[Optional[int], typer.Option(help="Only this class; all in turn if not given.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(min=0)] = 0,
    silo: Annotated[Optional[str], typer.Option(help="The generator that this silo has for itself.")] = None,  # noqa: UP045
    steps: Annotated[Optional[int], typer.Option(min=1, help="Steps down the chain.")] = None,  # noqa: UP045
    guidance: Annotated[Optional[float], typer.Option(min=0, max=100, help="Classifier-free guidance.")] = None,  # noqa: UP045
    png: Annotated[bool, typer.Option("--png", help="One PNG for each image, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Draw images from a trained generator."""
    from manyhands.evaluation.samples import write_samples

    generator = _generator(run_folder, silo)
    told = {key: value for key, value in {"steps": steps, "guidance": guidance}.items() if value is not None}
    sampling = generator.sampling.model_copy(update=told)
    labels = generator.labels(count, None if label is None else [label] * count)
    files = write_samples(out, generator, labels, seed, sampling, png=png)
    typer.echo(
        json.dumps({"count": count, "files": [str(file) for file in files]}) if as_json else "\n".join(map(str, files))
    )


@app.command()
def recipes(as_json: JsonOption = False) -> None:
    """List the shipped recipes."""
    told = {path.stem: _first_words(path) for path in _shipped()}
    typer.echo(json.dumps(told) if as_json else "\n".join(f"{name:28}{words}" for name, words in told.items()))


@app.command()
def cite(run_folder: RunArgument, as_json: JsonOption = False) -> None:
    """Print the papers behind the parts of a run."""
    from manyhands.citation import citations
    from manyhands.journal import RunFolder
    from manyhands.recipe import specs_in

    found = citations(*specs_in(RunFolder(run_folder).recipe, str(run_folder)))
    typer.echo(json.dumps({"papers": found}) if as_json else "\n".join(found))


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from manyhands import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> NoReturn:
    """Run the command; an error is told in words, and has an exit code of its own (docs/errors)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app()
    except ManyhandsError as error:
        typer.echo(f"error: {error}\n       see docs/errors/{error.page}.md", err=True)
        sys.exit(error.exit_code)
    except Interrupted as interrupted:
        typer.echo(f"interrupted{interrupted}", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(1)
    sys.exit(0)


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM; libraries have plans of their own for KeyboardInterrupt."""


def _interrupt(*_: object) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # once is enough: what follows is short
    raise Interrupted


def _train(told: Recipe, folder: Path, *, resume: bool, quiet: bool) -> None:
    from manyhands.experiment import compose
    from manyhands.journal import RunFolder
    from manyhands.progress import Progress

    experiment = compose(told, folder, resume=resume)
    for line in [f"skipped {name}" for name in experiment.skipped]:
        typer.echo(line, err=True)
    progress = Progress(told, quiet=quiet)
    try:
        for done in experiment:
            progress.show(done)
    except Interrupted:
        raise Interrupted(f"; {RunFolder(folder).kept} rounds are kept in {folder}: --resume goes on") from None
    finally:
        progress.close()
    for problem in experiment.run_folder.problems if experiment.run_folder else []:
        typer.echo(f"warning: {problem}", err=True)


def _show_plan(told: Recipe, *, as_json: bool) -> None:
    import tomli_w

    words = told.method.plan().words()
    if as_json:
        typer.echo(json.dumps({"recipe": told.resolved(), "plan": words}))
    else:
        typer.echo(tomli_w.dumps(told.resolved()) + "\n" + "\n".join(f"# {line}" for line in words))


def _generator(folder: Path, silo: str | None) -> Generator:
    from manyhands.experiment import chosen_device
    from manyhands.journal import RunFolder
    from manyhands.models.generator import Generator

    kept = RunFolder(folder)
    device = chosen_device(kept.recipe.get("device", "auto"))
    where = kept.model if silo is None else kept.silo(silo) / "model"
    if not where.exists():
        own = sorted(path.parent.name for path in kept.path.glob("silos/*/model"))
        hint = f"; these silos have one of their own (--silo): {', '.join(own)}" if own else "; has the run ended?"
        raise RunFolderError(f"{folder}: {'the server' if silo is None else silo} has no trained generator{hint}")
    return Generator.from_pretrained(where, device)


def _recipe_path(given: str) -> Path:
    if given.endswith(".toml") or Path(given).is_file():
        return Path(given)
    from manyhands.spec import nearest

    shipped = {path.stem: path for path in _shipped()}
    if given not in shipped:
        raise RecipeError(f"{given}: there is no such recipe; {nearest(given, list(shipped))}")
    return shipped[given]


def _shipped() -> list[Path]:
    """The recipes inside an installed package, or those of the checkout that the package is run from."""
    inside, beside = Path(__file__).parent / "recipes", Path(__file__).parents[2] / "recipes"
    return sorted((inside if inside.is_dir() else beside).glob("*.toml"))


def _first_words(path: Path) -> Any:
    return path.read_text().split("\n", 1)[0].lstrip("# ")
