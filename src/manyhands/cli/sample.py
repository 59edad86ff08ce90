from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyhands.cli.options import GuidanceOption, JsonOption, StepsOption
from manyhands.errors import RecipeError, RunFolderError
from manyhands.files.strict_json import finite_json

if TYPE_CHECKING:
    from manyhands.generators.base import ImageGenerator


def sample(
    run_folder: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The folder of a run, or only its model/ folder. No code in it is run."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Write samples.safetensors and grid.png to this folder.")],
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Number of images.")] = 64,
    label: Annotated[
        int | None,
        typer.Option(metavar="CLASS", help="Sample only this class, a number from 0. Default: all classes in turn."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Random seed of the samples.")] = 0,
    silo: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Sample as this silo does: from its own network, or together with the server's."
        ),
    ] = None,
    alone: Annotated[
        bool,
        typer.Option(
            "--alone",
            help="Only collafuse: use the server's network alone or, with --silo, that silo's network alone.",
        ),
    ] = False,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    png: Annotated[bool, typer.Option("--png", help="Also write a PNG file for each image.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Generate images with a trained model."""
    from manyhands.evaluation.samples import write_samples

    generator = _generator(run_folder, silo, alone=alone)
    options = {name: value for name, value in {"steps": steps, "guidance": guidance}.items() if value is not None}
    sampling = generator.sampling.model_copy(update=options)
    labels = generator.labels(count, None if label is None else [label] * count)
    origin = f"{run_folder.resolve()} {_changed(run_folder)} {silo} {alone}"
    files = write_samples(out, generator, labels, seed, sampling, png=png, of=origin)
    typer.echo(
        finite_json({"count": count, "files": [str(file) for file in files]}) if as_json else "\n".join(map(str, files))
    )


def _generator(folder: Path, silo: str | None, *, alone: bool) -> ImageGenerator:
    from manyhands.generators.load import load
    from manyhands.models.autoencoder import FACTS, TrainedAutoencoder
    from manyhands.runs.finished import loaded_generator
    from manyhands.runs.run_folder import RunFolder
    from manyhands.silos.device import chosen_device

    if (folder / FACTS).is_file():
        if silo is not None or alone:
            raise RecipeError(f"{folder}: is a single model; --silo and --alone choose among the models of a run")
        generator: ImageGenerator | TrainedAutoencoder = load(folder, chosen_device("auto"))
    else:
        generator = loaded_generator(RunFolder(folder), silo, alone=alone)
    if isinstance(generator, TrainedAutoencoder):
        raise RunFolderError(
            f"{folder}: trained an autoencoder, which generates no images by itself; name its model/ "
            "folder in a recipe with method.model.kind = 'latent'"
        )
    return generator


def _changed(folder: Path) -> int:
    """When the run was last evaluated, or the model was written (nanoseconds)."""
    report = folder / "report.json"
    return (report if report.exists() else folder).stat().st_mtime_ns
