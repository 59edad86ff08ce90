"""Make a start-up kit of FLARE ready for Manyhands."""

from __future__ import annotations

from typing import Annotated

import typer

from manyhands.cli.federation.options import DataOption, KitArgument, PolicyOption


def prepare(
    kit: KitArgument,
    data: DataOption = "",
    policy: PolicyOption = None,
    launcher: Annotated[
        bool | None, typer.Option(help="Restart killed processes of jobs, or let them end the job. Default: restart.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Put everything back as it was before.")] = False,
) -> None:
    """Make a start-up kit of FLARE ready for Manyhands.

    It allows our classes in jobs, has killed processes of jobs restarted, lets users ask for the status, and writes the
    policy of a site. Only files in KIT/local are changed; FLARE reads them when the party is started.
    """
    from manyhands.federation import prepare as kits
    from manyhands.federation.kit import load_kit

    if undo:
        changes = kits.undo(kit)
    elif load_kit(kit, "server", "site").role == "site":
        changes = kits.prepare_site(kit, policy, data, launcher=launcher)
    else:
        changes = kits.prepare(kit, launcher=launcher)
    for line in changes or [f"{kit}: nothing to change"]:
        typer.echo(line)
