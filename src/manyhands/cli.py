"""The command line. Everything heavy is imported in the command that needs it."""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from manyhands.errors import ManyhandsError, RecipeError, RunFolderError
from manyhands.federation.commands import app as federation
from manyhands.shipped import recipe_path, shipped
from manyhands.strict import kept_json

if TYPE_CHECKING:
    from manyhands.models.generator import Drawing
    from manyhands.recipe import Recipe
    from manyhands.sweep import Sweep

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
    from manyhands.sweep import load_sweep, write_index

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
        _compare([folder / each.folder for each in runs], unranked=sweep.swept, as_json=as_json)
        if "method.cut" in sweep.variants[0].values:
            _trade(folder, quiet=as_json)
    else:
        _show_ended(folder / runs[0].folder, as_json=as_json)


@app.command()
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

    from manyhands.evaluation.judge import Evaluation
    from manyhands.experiment import evaluate as measure
    from manyhands.journal import RunFolder

    try:
        told = Evaluation(images=images, features=features, seeds=seeds, cas=cas)
    except ValidationError as error:
        raise RecipeError(f"--features {features}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    sampling = {name: value for name, value in {"steps": steps, "guidance": guidance}.items() if value is not None}
    if data and data != "recipe" and not Path(data).is_dir():
        raise RecipeError(f"--data {data}: there is no such folder")
    measure(RunFolder(run_folder), told, data, **sampling)
    _show_ended(run_folder, as_json=as_json)


@app.command()
def compare(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="The folders of two runs or more.")],
    out: Annotated[Path | None, typer.Option(help="Where the table (md, csv, json) and the figures go.")] = None,
    by: Annotated[str, typer.Option(help="The figure that ranks.")] = "fid",
    unranked: Annotated[
        bool, typer.Option("--unranked", help="Show runs of different protocols, without a rank.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put runs side by side; runs that differ in their seed alone are one column."""
    _compare(run_folders, out, by, unranked=unranked, as_json=as_json)


@app.command()
def sample(
    run_folder: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The folder of a run, or a model/ folder alone, whose code never runs."),
    ],
    out: Annotated[Path, typer.Option(help="Where samples.safetensors and grid.png go.")],
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 64,
    label: Annotated[int | None, typer.Option(help="Only this class; all in turn if not given.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    silo: Annotated[
        str | None, typer.Option(help="What this silo draws: from its own network, or with the server.")
    ] = None,
    alone: Annotated[
        bool,
        typer.Option("--alone", help="Of a chain that is cut, only the server's network, or with --silo only its own."),
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, max=100_000, help="Steps down the chain.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=100, help="Classifier-free guidance.")] = None,
    png: Annotated[bool, typer.Option("--png", help="One PNG for each image, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Draw images from a trained generator."""
    from manyhands.evaluation.samples import write_samples

    generator = _generator(run_folder, silo, alone=alone)
    told = {key: value for key, value in {"steps": steps, "guidance": guidance}.items() if value is not None}
    sampling = generator.sampling.model_copy(update=told)
    labels = generator.labels(count, None if label is None else [label] * count)
    of = f"{run_folder.resolve()} {_changed(run_folder)} {silo} {alone}"
    files = write_samples(out, generator, labels, seed, sampling, png=png, of=of)
    typer.echo(
        kept_json({"count": count, "files": [str(file) for file in files]}) if as_json else "\n".join(map(str, files))
    )


CUTS = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"


@app.command()
def audit(
    run_folder: RunArgument,
    cuts: Annotated[
        str, typer.Option(help=f"Shares of the chain to attack at, beside the run's own; collafuse. By default {CUTS}.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Attack what a run gave away; the figures go into its report. Of a sweep over cuts of collafuse: all of them."""
    from manyhands.audit import audit as attack
    from manyhands.audit import trade
    from manyhands.evaluation.disclosed import rows, words
    from manyhands.journal import RunFolder
    from manyhands.progress import print_table

    try:
        shares = [float(share) for share in (cuts or CUTS).split(",") if share.strip()]
    except ValueError:
        raise RecipeError(f"--cuts {cuts}: is no list of shares, such as 0.2,0.4") from None
    if bad := [share for share in shares if not 0 < share < 1]:
        raise RecipeError(f"--cuts {cuts}: {bad[0]:g} is not between 0 and 1, where images are released noised")
    if (run_folder / "sweep.json").exists():
        if as_json:
            typer.echo(kept_json(trade(run_folder)))
        else:
            _trade(run_folder, quiet=False)
        return
    folder = RunFolder(run_folder)
    if cuts and folder.recipe.get("method", {}).get("kind") == "huscf":
        raise RecipeError(f"--cuts {cuts}: is for runs of collafuse; of huscf every head is attacked")
    found = attack(folder, shares)
    if as_json:
        typer.echo(kept_json(found))
        return
    print_table(rows(found))
    for line in words(found):
        typer.echo(_wrapped(line, ""))
    if (figure := run_folder / "figures" / "disclosure.png").exists():
        typer.echo(f"figure   {figure}")
    typer.echo(f"report   {run_folder / 'report.html'}")


@app.command()
def advise(
    devices: Annotated[list[Path], typer.Argument(metavar="DEVICES...", help="TOML files of devices, or of one each.")],
    mode: Annotated[str, typer.Option(help="corrected, or authors: with the slips of theirs.")] = "corrected",
    min_head: Annotated[int, typer.Option(min=0, help="The least last block of a discriminator's head.")] = 1,
    solver: Annotated[str, typer.Option(help="exact, or genetic: as the authors look for cuts.")] = "exact",
    seed: Annotated[int, typer.Option(min=0, help="Of the genetic solver.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A folder for timeline.png.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the cuts of a GAN under which an iteration takes least on these devices."""
    from manyhands.advisor import Advisor
    from manyhands.devices import load_devices
    from manyhands.progress import print_table
    from manyhands.timetable import tables, timeline, timetable

    for name, value, known in (("mode", mode, ("corrected", "authors")), ("solver", solver, ("exact", "genetic"))):
        if value not in known:
            raise RecipeError(f"--{name} {value}: is neither {known[0]} nor {known[1]}")
    advice = load_devices(devices)
    advisor = Advisor(advice.model, advice, mode, min_head)  # type: ignore[arg-type]
    cuts = advisor.cuts(solver, seed)  # type: ignore[arg-type]
    if out:
        from manyhands.evaluation import figures

        out.mkdir(parents=True, exist_ok=True)
        figures.timeline(out / "timeline.png", timeline(advisor, cuts))
    found = timetable(advisor, cuts)
    if as_json:
        typer.echo(kept_json(found))
        return
    for table in tables(found):
        print_table(table)
    figure = f"\nfigure   {out / 'timeline.png'}" if out else ""
    typer.echo(f"an iteration takes {found['seconds']:.2f} s{figure}")


@app.command()
def profile(
    out: Annotated[Path | None, typer.Option(help="The TOML file to write, for advise.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="A file with batch and [model], as advise reads; 28 x 28 x 1 if not given.")
    ] = None,
    peer: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Measure the link to who serves there.")] = None,
    rate: Annotated[float | None, typer.Option(help="Bytes a second each way, where no peer is asked.")] = None,
    name: Annotated[str | None, typer.Option(help="What the device is called; as the machine if not given.")] = None,
    memory: Annotated[float | None, typer.Option(help="MB for training; what is free if not given.")] = None,
    serves: Annotated[
        int, typer.Option("--server", metavar="N", min=0, help="This machine is to be the server of so many devices.")
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    serve: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Answer one peer instead; a port alone is on this machine.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, max=86_400, help="How long to serve.")] = 300,
) -> None:
    """Measure what this machine can do for a cut GAN, and write it down for advise."""
    from manyhands.links.measure import Link, address, answer_one, link_to

    if (serve is None) == (out is None):
        raise RecipeError("profile: say either --out FILE, to measure, or --serve HOST:PORT, to answer who measures")
    if serve is not None:
        answer_one(*address(serve, "--serve"), seconds, typer.echo)
        return
    assert out is not None
    told = {"--rate": rate, "--memory": memory}
    if bad := [f"{option} {value:g}" for option, value in told.items() if value is not None and not 0 < value < 1e15]:
        raise RecipeError(f"{bad[0]}: is not above 0")
    if not (serves or peer or rate):
        raise RecipeError("profile: say --peer HOST:PORT to measure the link to the server, or its --rate")
    from manyhands.devices import Profile, load_model
    from manyhands.experiment import chosen_device
    from manyhands.profiler import own_name, profiled, write

    called, where = own_name(name), chosen_device(device)
    work = load_model(model) if model else Profile()
    link = link_to(*address(peer, "--peer")) if peer else Link(rate, rate) if rate else None
    found = profiled(work, called, link, memory=memory and 1e6 * memory, serves=serves, device=where)
    write(out, found, where)
    typer.echo(f"{out}\n{out.read_text()}".rstrip())


@app.command()
def recipes(as_json: JsonOption = False) -> None:
    """List the shipped recipes."""
    told = {path.stem: _first_words(path) for path in shipped()}
    typer.echo(kept_json(told) if as_json else "\n".join(_wrapped(words, f"{name:21}") for name, words in told.items()))


@app.command()
def cite(run_folder: RunArgument, as_json: JsonOption = False) -> None:
    """Print the papers behind the parts of a run."""
    from manyhands.citation import citations
    from manyhands.journal import RunFolder
    from manyhands.recipe import specs_in

    found = citations(*specs_in(RunFolder(run_folder).recipe, str(run_folder)))
    typer.echo(kept_json({"papers": found}) if as_json else "\n".join(found))


app.add_typer(federation, name="federation")


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
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(INTERRUPTED)  # libraries wait for seconds at an exit; all that is kept bears a kill
    except BrokenPipeError:
        sys.exit(1)
    sys.exit(0)


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM; libraries have plans of their own for KeyboardInterrupt."""


def _interrupt(*_: object) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # once is enough: what follows is short
    raise Interrupted


def _trade(folder: Path, *, quiet: bool) -> None:
    """The table and the picture of a sweep over cuts."""
    from manyhands.audit import trade
    from manyhands.evaluation.disclosed import trade_rows
    from manyhands.progress import print_table

    rows = trade(folder)
    if not quiet:
        print_table(trade_rows(rows), "What each cut reaches, gives away (one release) and costs a silo.")
        typer.echo(f"figure   {folder / 'trade.png'}")


def _compare(
    folders: list[Path], out: Path | None = None, by: str = "fid", *, unranked: bool = False, as_json: bool = False
) -> None:
    from manyhands.evaluation.compare import Comparison
    from manyhands.progress import print_table

    found = Comparison(folders, by, unranked=unranked)
    files = [] if out is None else found.write(out)
    if as_json:
        typer.echo(kept_json({"note": found.note(), "runs": found.records(), "files": [str(file) for file in files]}))
        return
    if verdicts := found.verdicts():
        typer.echo("\n".join(_wrapped(line, "") for line in verdicts) + "\n")
    print_table(found.table(), found.note())
    for file in files:
        typer.echo(file)


def _show_ended(folder: Path, *, as_json: bool) -> None:
    """The figures of a finished run, and where its parts lie."""
    from manyhands.evaluation import verdict
    from manyhands.evaluation.report import figures_table, measured_words
    from manyhands.journal import RunFolder
    from manyhands.progress import print_table

    report = RunFolder(folder).report
    if as_json:
        typer.echo(kept_json(report))
        return
    for line in report.get("gives_away", []):
        typer.echo(_wrapped(f"warning: {line}", ""), err=True)
    if "evaluation" in report:
        if words := verdict.of_report(report):
            typer.echo(f"{words}\n")
        print_table(figures_table(report), measured_words(report))
        for note in report["evaluation"]["notes"]:
            typer.echo(_wrapped(f"warning: {note}", ""), err=True)
    parts = {"samples": "figures/samples.png", "report": "report.html", "model": "model"}
    for name, part in parts.items():
        if (folder / part).exists():
            typer.echo(f"{name:9}{folder / part}")


def _train(told: Recipe, folder: Path, *, resume: bool, quiet: bool, board: bool) -> None:
    from manyhands.experiment import compose
    from manyhands.journal import RunFolder
    from manyhands.progress import Progress

    experiment = compose(told, folder, resume=resume)
    for line in [f"skipped {name}" for name in experiment.skipped]:
        typer.echo(line, err=True)
    before = experiment.method.warnings(experiment.roster)
    for line in before:
        typer.echo(f"warning: {line}", err=True)
    watchers: list[Any] = [Progress(told, quiet=quiet)]
    if board:
        from manyhands.evaluation.board import Board

        watchers.append(Board(RunFolder(folder)))
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
            typer.echo("\n".join([run.folder, *[_wrapped(line, "    ") for line in lines]]))
    elif as_json:
        typer.echo(kept_json(plans[0]))
    else:
        first, after = (
            "\n".join(_wrapped(line, "# ") for line in lines)
            for lines in (plans[0]["gives_away"], plans[0]["plan"] + plans[0]["sizes"])
        )
        recipe = tomli_w.dumps(plans[0]["recipe"])
        typer.echo("\n".join([*([f"{first}\n"] if first else []), recipe, after]))


def _plan_of(told: Recipe) -> dict[str, Any]:
    """A recipe in full, and what it would send; what gives its images away stands apart, to be said first."""
    from manyhands.leaves.stated import given_away

    plan, sizes = told.method.plan(), told.method.sizes(told.partition.silos, told.sampling)
    first = given_away(plan.leaves)
    return {"gives_away": first, "recipe": told.resolved(), "plan": plan.words()[len(first) :], "sizes": sizes}


def _generator(folder: Path, silo: str | None, *, alone: bool) -> Drawing:
    from manyhands.experiment import chosen_device, drawn_by
    from manyhands.journal import RunFolder
    from manyhands.models.autoencoder import FACTS, TrainedAutoencoder
    from manyhands.models.generator import load

    if (folder / FACTS).is_file():
        if silo is not None or alone:
            raise RecipeError(f"{folder}: is one model; --silo and --alone choose among those of a run")
        found: Drawing | TrainedAutoencoder = load(folder, chosen_device("auto"))
    else:
        found = drawn_by(RunFolder(folder), silo, alone=alone)
    if isinstance(found, TrainedAutoencoder):
        raise RunFolderError(
            f"{folder}: trained an autoencoder, which draws nothing of its own; name its model/ in a "
            "recipe with method.model.kind = 'latent'"
        )
    return found


def _changed(folder: Path) -> int:
    """When a run was measured last, or a model written."""
    report = folder / "report.json"
    return (report if report.exists() else folder).stat().st_mtime_ns


def _first_words(path: Path) -> str:
    """The first sentence of a recipe's header, as far as its first semicolon."""
    header = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return re.split(r"; |(?<! al)\. ", " ".join(line.lstrip("# ") for line in header), maxsplit=1)[0]


def _wrapped(words: str, head: str) -> str:
    """Words after a head, in lines of 80 columns."""
    mark = "#" if head.startswith("#") else ""
    return textwrap.fill(words, 80, initial_indent=head, subsequent_indent=mark.ljust(max(len(head), 4)))
