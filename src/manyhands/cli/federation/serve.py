"""Run the server of a federation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from manyhands.cli.federation.options import KitArgument
from manyhands.cli.options import DeviceOption
from manyhands.errors import KitError
from manyhands.federation.log import PeerLog, log

ALL_ADDRESSES = "0.0.0.0"


def serve(
    kit: KitArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the runs.")] = Path("runs"),
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Address to listen on. 0.0.0.0 means all addresses of this machine.")
    ] = ALL_ADDRESSES,
    port: Annotated[
        int,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Port to listen on, if it differs from the port in the kits since a router forwards that one. 0: the "
            "port in the kits.",
        ),
    ] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Run the server, until Ctrl-C.

    If its process crashes or is killed, it is restarted and continues from the last closed round; sites reconnect by
    themselves.
    """
    from manyhands.federation.kit import load_kit
    from manyhands.federation.supervisor import end_with_supervisor, is_worker, supervise

    loaded = load_kit(kit, "server")
    if not is_worker():
        _check_free(host, port or loaded.about.port)
        raise typer.Exit(supervise(sys.argv[1:]))
    end_with_supervisor()
    from manyhands.federation.kit import ADMIN
    from manyhands.federation.server import FederationServer
    from manyhands.federation.site_connections import SiteConnections
    from manyhands.models.state_spec import build_in_subprocess
    from manyhands.silos.device import chosen_device
    from manyhands.silos.memory import release_memory

    build_in_subprocess()
    release_memory(at_once=True)
    out.mkdir(parents=True, exist_ok=True)
    peer_log = PeerLog(log)
    connections = SiteConnections(loaded.connect(host, port), [*loaded.about.sites, ADMIN], peer_log)
    log(f"listening on {host}:{port or loaded.about.port}")
    try:
        server = FederationServer(
            loaded.about.sites, connections, out=out, device=chosen_device(device), log=log, peer_log=peer_log
        )
        while True:
            server.step()
    finally:
        connections.close()


def _check_free(host: str, port: int) -> None:
    import socket

    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise KitError(f"{host}:{port}: cannot listen there: {error.strerror or error}") from None
