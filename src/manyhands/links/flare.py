"""NVIDIA FLARE: certificates from its provisioning, and its mutually authenticated connections between parties.

Of FLARE's layers this uses the lowest: its communicator, which knows a peer by the name in its certificate. A job of
FLARE's takes seconds to begin, ends when one process of it does, and lets nobody come back.
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

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before it is imported: what goes wrong is told by us

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
from manyhands.links.frame import Frame, read_frame

APP = 0x4D48
ORG, ROOT, SIGNATURE = "manyhands", "rootCA.pem", "signature.json"
MIN_WAIT_SECONDS, MAX_WAIT_SECONDS = 0.5, 4.0
"""Seconds before a site dials again: doubled from one to the other, and drawn anew within the upper half each time."""
PING_MILLISECONDS, PING_TIMEOUT_MILLISECONDS = 5000, 5000
"""Milliseconds of silence after which a connection is asked whether it is there, and then given up."""
OPTIONS = [
    ("grpc.max_send_message_length", 2 * PART_BYTES), ("grpc.max_receive_message_length", 2 * PART_BYTES),
    ("grpc.keepalive_time_ms", PING_MILLISECONDS), ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MILLISECONDS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_MILLISECONDS // 2),
    ("grpc.http2.max_ping_strikes", 0), ("grpc.min_reconnect_backoff_ms", 3000),
    ("grpc.use_local_subchannel_pool", 1), ("grpc.so_reuseport", 0), ("grpc.enable_http_proxy", 0),
]  # fmt: skip

OnFrame = Callable[[str, Frame], None]
OnPeerChange = Callable[[str, bool], None]


class Connection(MessageReceiver, EndpointMonitor):
    """Frames between this party and its peers; whoever dials goes on dialling. ``take`` is called in other threads.

    ``noticed`` is told when a peer comes and goes.
    """

    def __init__(
        self, name: str, startup: Path, host: str, port: int, role: Literal["server", "client"], take: OnFrame,
        noticed: OnPeerChange = lambda *_: None,
    ) -> None:  # fmt: skip
        self._take, self._noticed = take, noticed
        held = {
            DriverParams.CA_CERT.value: str(startup / ROOT),
            getattr(DriverParams, f"{role.upper()}_CERT").value: str(startup / f"{role}.crt"),
            getattr(DriverParams, f"{role.upper()}_KEY").value: str(startup / f"{role}.key"),
        }
        for quiet in ("nvflare", "grpc"):
            logging.getLogger(quiet).setLevel(logging.CRITICAL)
        self._communicator = Communicator(Endpoint(name, conn_props=held))
        self._communicator.register_message_receiver(APP, self)
        self._communicator.register_monitor(self)
        driver, mode = (_ListeningDriver(), Mode.PASSIVE) if role == "server" else (_DiallingDriver(), Mode.ACTIVE)
        self._communicator.add_connector_advanced(driver, mode, parse_url(f"grpcs://{host}:{port}"), secure=True)
        self._communicator.start()

    def send(self, peer: str, frames: Sequence[Frame]) -> bool:
        """Send what can be sent; False where the peer is not there."""
        endpoint = self._communicator.find_endpoint(peer)
        try:
            for frame in frames:
                self._communicator.send(endpoint or Endpoint(peer), APP, Carried(frame.fields, frame.payload))
        except (CommError, OSError, struct.error):  # it has gone
            return False
        return True

    def close(self) -> None:
        """Hang up."""
        self._communicator.stop()

    def process_message(self, endpoint: Endpoint, connection: Any, app_id: int, message: Carried) -> None:
        """What FLARE calls with what came."""
        self._take(endpoint.name, read_frame(message.headers, message.payload))

    def state_change(self, endpoint: Endpoint) -> None:
        """What FLARE calls when a peer comes or goes."""
        self._noticed(endpoint.name, endpoint.state == EndpointState.READY)


class _ListeningDriver(GrpcDriver):
    def __init__(self) -> None:
        super().__init__()
        self.options = OPTIONS


class _DiallingDriver(_ListeningDriver):
    """Dials again and again, after a wait that grows and is never the same at two sites."""

    def connect(self, connector: ConnectorInfo) -> None:
        wait, chance = MIN_WAIT_SECONDS, secrets.SystemRandom()
        while not connector.stopped.is_set():
            began = time.monotonic()
            super().connect(connector)
            wait = MIN_WAIT_SECONDS if time.monotonic() - began > MAX_WAIT_SECONDS else min(2 * wait, MAX_WAIT_SECONDS)
            connector.stopped.wait(wait * chance.uniform(0.5, 1))


class _KitSigner(Builder):
    """Puts a file into each kit and signs all that is in it; FLARE signs only kits for encrypted sums."""

    def __init__(self, name: str, about: Callable[[str], str]) -> None:
        self.name, self.about = name, about

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        for each in project.get_all_participants():
            folder = ctx.get_kit_dir(each)
            (Path(folder) / self.name).write_text(self.about(each.name))
            sign_folders(folder, ctx[CtxKey.ROOT_PRI_KEY], signature_file=SIGNATURE)


def provision(
    out: Path, server: str, host: str, others: Sequence[str], days: int, file: str, about: Callable[[str], str]
) -> None:
    """A kit for each party in ``out``, signed by an authority of its own, whose keys stay in ``out/authority``."""
    project, root = Project("manyhands", "a federation of Manyhands"), out / "authority"
    names = {PropKey.DEFAULT_HOST: host, PropKey.HOST_NAMES: ["localhost", "127.0.0.1"]}
    project.add_participant(Participant(ParticipantType.SERVER, server, ORG, props=names, project=project))
    for each in others:
        project.add_participant(Participant(ParticipantType.CLIENT, each, ORG, project=project))
    builders = [WorkspaceBuilder(), CertBuilder(root_valid_days=days), _KitSigner(file, about)]
    with _unreadable_to_others():
        context = Provisioner(str(root), builders).provision(project, logger=logging.getLogger(__name__))
    if context.get(CtxKey.BUILD_ERROR):
        raise RecipeError(f"{out}: FLARE made no certificates: {'; '.join(context.get_errors())}")
    for each in (server, *others):
        (out / each).mkdir()
        shutil.move(Path(context[CtxKey.CURRENT_PROD_DIR]) / each / "startup", out / each)


@contextmanager
def _unreadable_to_others() -> Iterator[None]:
    """Whatever is written meanwhile is for its owner alone, from its first byte on."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def is_untouched(startup: Path) -> bool:
    """Whether what is in a kit is as it was signed."""
    return bool(
        verify_folder_signature(str(startup), str(startup / ROOT), single_signer=True, signature_file=SIGNATURE)
    )
