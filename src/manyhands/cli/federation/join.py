"""Take part in a federation as a site."""

from __future__ import annotations

from typing import Annotated

import typer

from manyhands.cli.federation.options import DataOption, KitArgument, PolicyOption, gone
from manyhands.federation.log import log


def join(
    kit: KitArgument,
    data: DataOption = "",
    policy: PolicyOption = None,
    _out: Annotated[str | None, gone("--out", "what a site keeps is in KIT/_manyhands now; move it there")] = None,
) -> None:
    """Take part as a site in runs that its policy allows.

    Until Ctrl-C the site stays connected to the server, waits for runs, and reconnects when the connection is lost.
    What it keeps is in KIT/_manyhands, and never leaves the site.
    """
    from manyhands.federation import parent
    from manyhands.federation.kit import load_kit
    from manyhands.federation.prepare import prepare_site

    loaded = load_kit(kit, "site")
    for line in prepare_site(kit, policy, data):
        log(line)
    log(f"{loaded.party} connects to {loaded.host}:{loaded.port}; the authority is {loaded.authority_fingerprint()}")
    raise typer.Exit(parent.run(loaded))
