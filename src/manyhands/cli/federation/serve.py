"""Run the server of a federation."""

from __future__ import annotations

from typing import Annotated

import typer

from manyhands.cli.federation.options import KitArgument, gone
from manyhands.errors import KitError
from manyhands.federation.log import log


def serve(
    kit: KitArgument,
    _out: Annotated[str | None, gone("--out", "runs are kept in KIT/_manyhands now")] = None,
    _host: Annotated[str | None, gone("--host", "the address is that of the kit; see federation new --server")] = None,
    _port: Annotated[str | None, gone("--port", "the port is that of the kit; see federation new --server")] = None,
) -> None:
    """Run the server of FLARE with this kit, until Ctrl-C.

    Runs are kept in KIT/_manyhands. What was running goes on when the server is started again.
    """
    from manyhands.federation import parent
    from manyhands.federation.kit import load_kit
    from manyhands.federation.prepare import prepare

    loaded = load_kit(kit, "server")
    for line in prepare(kit):
        log(line)
    _check_free("127.0.0.1" if loaded.is_local else "0.0.0.0", loaded.port)
    log(f"listening on port {loaded.port}; the authority is {loaded.authority_fingerprint()}")
    raise typer.Exit(parent.run(loaded))


def _check_free(host: str, port: int) -> None:
    import socket

    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise KitError(f"{host}:{port}: cannot listen there: {error.strerror or error}") from None
