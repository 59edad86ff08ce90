"""The server's component of a FLARE job: a controller that holds the server of one run."""

from __future__ import annotations

import shutil
import time
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvflare.apis.controller_spec import Task
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.fqcn import FQCN

from manyhands.federation.job.folder import TASK
from manyhands.federation.log import PeerLog
from manyhands.federation.run_session import OVER, RunSession
from manyhands.federation.server import FederationServer
from manyhands.federation.site_connections import SiteConnections
from manyhands.links.flare_cell import CellConnection
from manyhands.models.state_spec import build_in_subprocess
from manyhands.silos.device import chosen_device
from manyhands.silos.memory import release_memory

if TYPE_CHECKING:
    from manyhands.links.frame import Connect

FOLDER = "manyhands"
"""The folder in a party's workspace with what it keeps over all jobs, and in that of a job with its results."""
FAREWELL_SECONDS = 30.0
"""How long the server answers sites that have not heard that the run is over."""


class RunServer(Controller):  # type: ignore[misc]  # FLARE has no types
    """Serves one run. Its run folder is in the server's workspace, where a later job with the same run goes on.

    Args:
        recipe: The recipe, as TOML.
        run: The name of the run folder.
        device: Where the server computes.
    """

    def __init__(self, recipe: str, run: str, device: str = "auto") -> None:
        super().__init__(task_check_period=0.1)
        self.recipe, self.run_name, self.device = recipe, run, device

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing yet: the sites are not there."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing: a closed round is kept before it is answered."""

    def process_result_of_unknown_task(self, **_: Any) -> None:
        """Ignore what a site answers to a task of a server process that was killed since."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Serve the run to its end; called by FLARE in a thread of the job's process."""
        engine, job, workspace = fl_ctx.get_engine(), fl_ctx.get_job_id(), fl_ctx.get_workspace()
        cells = {client.name: FQCN.join([client.get_fqcn(), job]) for client in engine.get_clients()}
        build_in_subprocess()
        release_memory(at_once=True)
        out = Path(workspace.get_root_dir()) / FOLDER / self.run_name
        connect = partial(CellConnection, cell=engine.get_cell(), peers=cells)
        server, session = self._open(out, connect, sorted(cells), lambda line: self.log_info(fl_ctx, line))
        task = Task(TASK, Shareable(), timeout=0)
        self.broadcast(task, fl_ctx, targets=sorted(cells), min_responses=len(cells))
        while not abort_signal.triggered and session.stage not in OVER:
            server.step()
        shutil.copytree(session.folder.path, Path(workspace.get_run_dir(job)) / FOLDER, dirs_exist_ok=True)
        if session.stage != "ended":
            self.system_panic(f"the run {session.stage}: {session.why}", fl_ctx)
            return
        end = time.monotonic() + FAREWELL_SECONDS
        while not abort_signal.triggered and time.monotonic() < end and not task.completion_status:
            server.step()

    def _open(
        self, out: Path, connect: Connect, sites: list[str], log: Callable[[str], None]
    ) -> tuple[FederationServer, RunSession]:
        """Return the server and its run, which goes on where an earlier process or job left it."""
        out.mkdir(parents=True, exist_ok=True)
        peer_log, device = PeerLog(log), chosen_device(self.device)
        connections = SiteConnections(connect, sites, peer_log)
        server = FederationServer(sites, connections, out=out, device=device, log=log, peer_log=peer_log)
        session = server.run_session
        if session is None or session.stage in OVER:
            session = server.open_run(tomllib.loads(self.recipe), sites)
        return server, session
