from __future__ import annotations

from typing import Annotated

import typer

from manyhands.cli.console import print_paths, print_table
from manyhands.cli.options import JsonOption, RunArgument
from manyhands.cli.output import show_tradeoff, wrapped
from manyhands.errors import RecipeError
from manyhands.files.strict_json import finite_json


def audit(
    run_folder: RunArgument,
    cuts: Annotated[
        str,
        typer.Option(
            metavar="SHARES",
            help="collafuse: also attack images that are noised up to these shares of the timesteps (0: clean, 1: pure "
            "noise). Default: 0.1 to 0.9 in steps of 0.1.",
        ),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Measure by attacks what the server can learn from a run.

    The results go into the run's report. RUN is a run of collafuse or huscf. It may be a sweep of
    collafuse over several values of method.cut: then each of them is attacked.
    """
    from manyhands.report.disclosure import table, words
    from manyhands.runs.audit import SHARES
    from manyhands.runs.audit import audit as attack
    from manyhands.runs.run_folder import RunFolder
    from manyhands.runs.sweep import INDEX
    from manyhands.runs.tradeoff import tradeoff

    try:
        shares = [float(share) for share in cuts.split(",") if share.strip()]
    except ValueError:
        raise RecipeError(f"--cuts {cuts}: is not a list of numbers such as 0.2,0.4") from None
    if bad := [share for share in shares if not 0 < share < 1]:
        raise RecipeError(f"--cuts {cuts}: {bad[0]:g} is given, but a cut must be more than 0 and less than 1")
    if (run_folder / INDEX).exists():
        if as_json:
            typer.echo(finite_json(tradeoff(run_folder)))
        else:
            show_tradeoff(run_folder, quiet=False)
        return
    folder = RunFolder(run_folder)
    if cuts and folder.recipe.get("method", {}).get("kind") == "huscf":
        raise RecipeError(f"--cuts {cuts}: applies to runs of collafuse only; in a run of huscf every head is attacked")
    results = attack(folder, shares or SHARES)
    if as_json:
        typer.echo(finite_json(results))
        return
    print_table(table(results))
    for line in words(results):
        typer.echo(wrapped(line, ""))
    paths = {"figure": run_folder / "figures" / "disclosure.png", "report": run_folder / "report.html"}
    print_paths({name: path for name, path in paths.items() if path.exists()})
