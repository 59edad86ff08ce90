from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyhands.cli.options import JsonOption
from manyhands.errors import RecipeError, RunFolderError
from manyhands.files.strict_json import kept_json

if TYPE_CHECKING:
    from manyhands.generators.base import ImageGenerator


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


def _generator(folder: Path, silo: str | None, *, alone: bool) -> ImageGenerator:
    from manyhands.generators.load import load
    from manyhands.models.autoencoder import FACTS, TrainedAutoencoder
    from manyhands.runs.finished import loaded_generator
    from manyhands.runs.run_folder import RunFolder
    from manyhands.silos.device import chosen_device

    if (folder / FACTS).is_file():
        if silo is not None or alone:
            raise RecipeError(f"{folder}: is one model; --silo and --alone choose among those of a run")
        found: ImageGenerator | TrainedAutoencoder = load(folder, chosen_device("auto"))
    else:
        found = loaded_generator(RunFolder(folder), silo, alone=alone)
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
