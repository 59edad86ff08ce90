from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manyhands.cli.console import print_paths, print_table
from manyhands.cli.options import JsonOption, completion
from manyhands.errors import RecipeError
from manyhands.files.strict_json import finite_json

MODES, SOLVERS = ("corrected", "authors"), ("exact", "genetic")


def advise(
    devices: Annotated[
        list[Path],
        typer.Argument(
            metavar="DEVICES", help="TOML files that describe the devices, as manyhands profile writes them."
        ),
    ],
    mode: Annotated[
        str,
        typer.Option(
            metavar="MODE",
            help="Cost model: corrected, or authors (as published, with the mistakes of the authors' code).",
            autocompletion=completion(lambda: MODES),
        ),
    ] = "corrected",
    min_head: Annotated[
        int,
        typer.Option(
            metavar="BLOCK",
            min=0,
            help="Each device keeps at least blocks 0 to BLOCK of the discriminator. Higher is safer: images are "
            "easy to compute from the output of few blocks.",
        ),
    ] = 1,
    solver: Annotated[
        str,
        typer.Option(
            metavar="SOLVER",
            help="exact, or genetic (the search algorithm of the HuSCF-GAN authors).",
            autocompletion=completion(lambda: SOLVERS),
        ),
    ] = "exact",
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the genetic solver.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write timeline.png to this folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find where to cut a GAN between devices and server.

    For each device, it prints which blocks the device keeps, so that an iteration takes as little time as possible.
    """
    from manyhands.placement.devices import load_devices
    from manyhands.placement.planner import Planner
    from manyhands.placement.timeline import tables, timeline, timetable

    for name, value, choices in (("mode", mode, MODES), ("solver", solver, SOLVERS)):
        if value not in choices:
            raise RecipeError(f"--{name} {value}: must be {choices[0]} or {choices[1]}")
    advice = load_devices(devices)
    planner = Planner(advice.model, advice, mode, min_head)  # type: ignore[arg-type]
    cuts = planner.cuts(solver, seed)  # type: ignore[arg-type]
    if out:
        from manyhands.evaluation import plots

        out.mkdir(parents=True, exist_ok=True)
        plots.timeline(out / "timeline.png", timeline(planner, cuts))
    schedule = timetable(planner, cuts)
    if as_json:
        typer.echo(finite_json(schedule))
        return
    for table in tables(schedule):
        print_table(table)
    typer.echo(f"an iteration takes {schedule['seconds']:.2f} s")
    if out:
        print_paths({"figure": out / "timeline.png"})
