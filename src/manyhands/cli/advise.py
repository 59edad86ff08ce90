from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyhands.cli.options import JsonOption
from manyhands.errors import RecipeError
from manyhands.files.strict_json import kept_json

if TYPE_CHECKING:
    pass


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
    from manyhands.placement.devices import load_devices
    from manyhands.placement.planner import Planner
    from manyhands.placement.timeline import tables, timeline, timetable
    from manyhands.runs.progress import print_table

    for name, value, known in (("mode", mode, ("corrected", "authors")), ("solver", solver, ("exact", "genetic"))):
        if value not in known:
            raise RecipeError(f"--{name} {value}: is neither {known[0]} nor {known[1]}")
    advice = load_devices(devices)
    planner = Planner(advice.model, advice, mode, min_head)  # type: ignore[arg-type]
    cuts = planner.cuts(solver, seed)  # type: ignore[arg-type]
    if out:
        from manyhands.evaluation import figures

        out.mkdir(parents=True, exist_ok=True)
        figures.timeline(out / "timeline.png", timeline(planner, cuts))
    found = timetable(planner, cuts)
    if as_json:
        typer.echo(kept_json(found))
        return
    for table in tables(found):
        print_table(table)
    figure = f"\nfigure   {out / 'timeline.png'}" if out else ""
    typer.echo(f"an iteration takes {found['seconds']:.2f} s{figure}")
