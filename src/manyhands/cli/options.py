"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from manyhands.runs.shipped import shipped


def completion(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """How a shell completes an argument that is one of these names."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A TOML file, or the name of a shipped recipe (see manyhands recipes).",
        autocompletion=completion(lambda: (path.stem for path in shipped())),
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe: a.b=c. May be repeated."),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, max=100_000, help="Number of denoising steps of the sampler. Default: as in the recipe."
    ),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(metavar="SCALE", min=0, max=100, help="Scale of classifier-free guidance. Default: as in the recipe."),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="Where to compute: auto, cpu, cuda or mps. auto takes a GPU if there is one.",
        autocompletion=completion(lambda: ("auto", "cpu", "cuda", "mps")),
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")
]
