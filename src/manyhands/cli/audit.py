from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from manyhands.cli.options import JsonOption, RunArgument
from manyhands.cli.output import show_trade, wrapped
from manyhands.errors import RecipeError
from manyhands.files.strict_json import kept_json

if TYPE_CHECKING:
    pass


CUTS = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"


def audit(
    run_folder: RunArgument,
    cuts: Annotated[
        str, typer.Option(help=f"Shares of the chain to attack at, beside the run's own; collafuse. By default {CUTS}.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Attack what a run gave away; the figures go into its report. Of a sweep over cuts of collafuse: all of them."""
    from manyhands.report.collafuse_audit import rows, words
    from manyhands.runs.audit import audit as attack
    from manyhands.runs.audit import trade
    from manyhands.runs.progress import print_table
    from manyhands.runs.run_folder import RunFolder

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
            show_trade(run_folder, quiet=False)
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
        typer.echo(wrapped(line, ""))
    if (figure := run_folder / "figures" / "disclosure.png").exists():
        typer.echo(f"figure   {figure}")
    typer.echo(f"report   {run_folder / 'report.html'}")
