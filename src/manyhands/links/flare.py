"""NVIDIA FLARE: its certificates, and its mutually authenticated connections between parties.

This uses the lowest layer of FLARE: its communicator, which identifies a peer by the name in its certificate. A FLARE
job would take seconds to start, would end as soon as one of its processes ends, and would not let a party rejoin.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before gRPC is imported: we report its errors ourselves

from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.communicator import Communicator, Mode
from nvflare.fuel.f3.drivers.connector_info import ConnectorInfo
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.drivers.grpc_driver import GrpcDriver
from nvflare.fuel.f3.drivers.net_utils import parse_url
from nvflare.fuel.f3.endpoint import Endpoint, EndpointMonitor, EndpointState
from nvflare.fuel.f3.message import Message as Carried
from nvflare.fuel.f3.message import MessageReceiver
from nvflare.lighter.constants import CtxKey, ParticipantType, PropKey
from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.spec import Builder
from nvflare.lighter.utils import sign_folders, verify_folder_signature

from manyhands.errors import RecipeError
from manyhands.links.exchange import PART_BYTES
from manyhands.links.frame import Frame, OnFrame, OnPeerChange, read_frame

APP = 0x4D48
ORG, ROOT, SIGNATURE = "manyhands", "rootCA.pem", "signature.json"
MIN_WAIT_SECONDS, MAX_WAIT_SECONDS = 0.5, 4.0
"""The wait of a site before it reconnects doubles from the minimum to the maximum; the last half of it is random."""
PING_MILLISECONDS, PING_TIMEOUT_MILLISECONDS = 5000, 5000
"""Milliseconds of silence before a connection is pinged, and then until it is closed without an answer."""
OPTIONS = [
    ("grpc.max_send_message_length", 2 * PART_BYTES), ("grpc.max_receive_message_length", 2 * PART_BYTES),
    ("grpc.keepalive_time_ms", PING_MILLISECONDS), ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MILLISECONDS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_MILLISECONDS // 2),
    ("grpc.http2.max_ping_strikes", 0), ("grpc.min_reconnect_backoff_ms", 3000),
    ("grpc.use_local_subchannel_pool", 1), ("grpc.so_reuseport", 0), ("grpc.enable_http_proxy", 0),
]  # fmt: skip


class FlareConnection(MessageReceiver, EndpointMonitor):
    """A connection that carries frames between this party and its peers; a client reconnects for ever.

    Args:
        name: The name of this party.
        startup: The folder with its certificate and key.
        host: The host of the server.
        port: The port of the server.
        role: Whether this party is the server or a client.
        on_frame: See ``OnFrame``.
        on_peer_change: See ``OnPeerChange``.
    """

    def __init__(
        self, on_frame: OnFrame, on_peer_change: OnPeerChange, *,
        name: str, startup: Path, host: str, port: int, role: Literal["server", "client"],
    ) -> None:  # fmt: skip
        self._on_frame, self._on_peer_change = on_frame, on_peer_change
        credentials = {
            DriverParams.CA_CERT.value: str(startup / ROOT),
            getattr(DriverParams, f"{role.upper()}_CERT").value: str(startup / f"{role}.crt"),
            getattr(DriverParams, f"{role.upper()}_KEY").value: str(startup / f"{role}.key"),
        }
        for library in ("nvflare", "grpc"):
            logging.getLogger(library).setLevel(logging.CRITICAL)
        self._communicator = Communicator(Endpoint(name, conn_props=credentials))
        self._communicator.register_message_receiver(APP, self)
        self._communicator.register_monitor(self)
        driver, mode = (_ListeningDriver(), Mode.PASSIVE) if role == "server" else (_DiallingDriver(), Mode.ACTIVE)
        self._communicator.add_connector_advanced(driver, mode, parse_url(f"grpcs://{host}:{port}"), secure=True)
        self._communicator.start()

    def send(self, peer: str, frames: Sequence[Frame]) -> bool:
        """Send frames; return False if the peer is not connected."""
        endpoint = self._communicator.find_endpoint(peer)
        try:
            for frame in frames:
                self._communicator.send(endpoint or Endpoint(peer), APP, Carried(frame.fields, frame.payload))
        except (CommError, OSError, struct.error):  # the peer has disconnected
            return False
        return True

    def close(self) -> None:
        """Close the connection."""
        self._communicator.stop()

    def process_message(self, endpoint: Endpoint, connection: Any, app_id: int, message: Carried) -> None:
        """Called by FLARE with a received message."""
        self._on_frame(endpoint.name, read_frame(message.headers, message.payload))

    def state_change(self, endpoint: Endpoint) -> None:
        """Called by FLARE when a peer connects or disconnects."""
        self._on_peer_change(endpoint.name, endpoint.state == EndpointState.READY)


class _ListeningDriver(GrpcDriver):
    def __init__(self) -> None:
        super().__init__()
        self.options = OPTIONS


class _DiallingDriver(_ListeningDriver):
    """Reconnects for ever, after a wait that grows and is different at each site."""

    def connect(self, connector: ConnectorInfo) -> None:
        wait, random = MIN_WAIT_SECONDS, secrets.SystemRandom()
        while not connector.stopped.is_set():
            start = time.monotonic()
            super().connect(connector)
            wait = MIN_WAIT_SECONDS if time.monotonic() - start > MAX_WAIT_SECONDS else min(2 * wait, MAX_WAIT_SECONDS)
            connector.stopped.wait(wait * random.uniform(0.5, 1))


class _KitSigner(Builder):
    """Puts a file into each kit and signs the kit; FLARE itself signs only kits for homomorphic encryption."""

    def __init__(self, name: str, content: Callable[[str], str]) -> None:
        self.name, self.content = name, content

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        for party in project.get_all_participants():
            folder = ctx.get_kit_dir(party)
            (Path(folder) / self.name).write_text(self.content(party.name))
            sign_folders(folder, ctx[CtxKey.ROOT_PRI_KEY], signature_file=SIGNATURE)


def provision(
    out: Path, *, server: str, host: str, clients: Sequence[str], days: int, file: str, content: Callable[[str], str]
) -> None:
    """Create a kit for each party, signed by a new certificate authority, whose keys stay in ``out/authority``.

    Args:
        out: The folder of the kits.
        server: The name of the server.
        host: The host name of the server.
        clients: The names of the other parties.
        days: The days that the certificates are valid.
        file: The name of a file that is put into each kit.
        content: The content of that file, by the name of the party.
    """
    project, root = Project("manyhands", "a federation of Manyhands"), out / "authority"
    names = {PropKey.DEFAULT_HOST: host, PropKey.HOST_NAMES: ["localhost", "127.0.0.1"]}
    project.add_participant(Participant(ParticipantType.SERVER, server, ORG, props=names, project=project))
    for client in clients:
        project.add_participant(Participant(ParticipantType.CLIENT, client, ORG, project=project))
    builders = [WorkspaceBuilder(), CertBuilder(root_valid_days=days), _KitSigner(file, content)]
    with _unreadable_to_others():
        context = Provisioner(str(root), builders).provision(project, logger=logging.getLogger(__name__))
    if context.get(CtxKey.BUILD_ERROR):
        raise RecipeError(f"{out}: FLARE could not create the certificates: {'; '.join(context.get_errors())}")
    for party in (server, *clients):
        (out / party).mkdir()
        shutil.move(Path(context[CtxKey.CURRENT_PROD_DIR]) / party / "startup", out / party)


@contextmanager
def _unreadable_to_others() -> Iterator[None]:
    """Files written meanwhile can only be read by their owner, from their first byte."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def is_untouched(startup: Path) -> bool:
    """Return whether a kit is unchanged since it was signed."""
    return bool(
        verify_folder_signature(str(startup), str(startup / ROOT), single_signer=True, signature_file=SIGNATURE)
    )
