"""The server's component of a FLARE job: a controller that holds the server of one run."""

from __future__ import annotations

import shutil
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE, AnalyticsDataType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.signal import Signal
from nvflare.app_common.widgets.streaming import create_analytic_dxo, send_analytic_dxo
from nvflare.fuel.f3.cellnet.fqcn import FQCN

from manyhands.errors import ManyhandsError
from manyhands.federation.job.folder import STATUS, check_job
from manyhands.federation.job.orphan import end_if_orphaned
from manyhands.federation.kit import KEPT, RESULTS, RUNS
from manyhands.federation.log import PeerLog
from manyhands.federation.open_run import open_run
from manyhands.federation.run_session import OVER
from manyhands.federation.server import FederationServer
from manyhands.federation.site_connections import SiteConnections
from manyhands.links.flare_cell import CellConnection
from manyhands.models.state_spec import build_in_subprocess
from manyhands.runs.recipe_file import parse_recipe
from manyhands.silos.device import chosen_device
from manyhands.silos.memory import release_memory

if TYPE_CHECKING:
    from manyhands.runs.round import Round

STATUS_SECONDS = 1.0
"""How long an admin waits for the status while the server computes."""


class RunServer(Controller):  # type: ignore[misc]  # FLARE has no types
    """Serves one run. Its run folder is in the server's workspace, where a later job with the same run goes on.

    Args:
        recipe: The recipe, as TOML.
        run: The name of the run folder.
        version: The version of Manyhands that wrote the job.
        device: Where the server computes.
    """

    def __init__(self, recipe: str, run: str, version: str, device: str = "auto") -> None:
        super().__init__(task_check_period=0.1)
        end_if_orphaned()
        self.recipe, self.run_name, self.version, self.device = recipe, run, version, device
        self._status_requests: SimpleQueue[Future[dict[str, Any]]] = SimpleQueue()

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Let admins ask for the status; the sites are not there yet."""
        fl_ctx.get_engine().register_app_command(STATUS, self._request_status)

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing: a closed round is kept before it is answered."""

    def process_result_of_unknown_task(self, **_: Any) -> None:
        """Do nothing: no site is given a task."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Serve the run to its end; called by FLARE in a thread of the job's process."""
        build_in_subprocess()
        release_memory(at_once=True)
        try:
            with self._server(fl_ctx) as server:
                self._serve(server, abort_signal, fl_ctx)
        except ManyhandsError as error:
            self.system_panic(str(error), fl_ctx)

    def _serve(self, server: FederationServer, abort_signal: Signal, fl_ctx: FLContext) -> None:
        session = server.session
        while not abort_signal.triggered and session.stage not in OVER:
            self._step(server)
        if session.stage not in OVER:
            server.end_run("stopped", "FLARE ended the job")
        results = Path(fl_ctx.get_workspace().get_run_dir(fl_ctx.get_job_id())) / RESULTS
        shutil.copytree(session.folder.path, results, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
        if session.stage == "failed":
            self.system_panic(f"the run failed: {session.why}", fl_ctx)

    def _step(self, server: FederationServer) -> None:
        server.step()
        with suppress(Empty):
            self._status_requests.get_nowait().set_result(server.status())

    def _request_status(self, _topic: str, _data: Any, _fl_ctx: FLContext) -> dict[str, Any]:
        """Return the status of the run; called by FLARE in another thread."""
        request: Future[dict[str, Any]] = Future()
        self._status_requests.put(request)
        try:
            return request.result(STATUS_SECONDS)
        except TimeoutError:
            return {"busy": True}

    @contextmanager
    def _server(self, fl_ctx: FLContext) -> Iterator[FederationServer]:
        """The server and its run, which goes on where an earlier process or job left it."""
        check_job(self.run_name, self.version)
        engine, job = fl_ctx.get_engine(), fl_ctx.get_job_id()
        cells = {client.name: FQCN.join([client.get_fqcn(), job]) for client in engine.get_clients()}
        recipe, root = parse_recipe(tomllib.loads(self.recipe), "recipe"), Path(fl_ctx.get_workspace().get_root_dir())
        device = torch.device(chosen_device(self.device, repeatable=recipe.repeatable))

        def log(line: str) -> None:
            self.log_info(fl_ctx, line, fire_event=False)

        with open_run(
            root / KEPT / RUNS / self.run_name, recipe, sorted(cells), job, device, time.monotonic()
        ) as session:
            peer_log = PeerLog(log)
            connect = partial(CellConnection, cell=engine.get_cell(), peers=cells)
            connections = SiteConnections(connect, sorted(cells), peer_log)
            run = session.folder.path.name
            log(f"{run}: begins at round {session.round + 1}; the hash of its recipe is {session.recipe_hash}")
            yield FederationServer(session, connections, log, peer_log, partial(self._send_metrics, fl_ctx))

    def _send_metrics(self, fl_ctx: FLContext, done: Round) -> None:
        """Hand the figures of a round to FLARE's receivers in the job, such as that of TensorBoard."""
        losses = {f"loss/{site}": loss for site, loss in done.losses.items()}
        figures = {"loss": done.loss, "seconds": done.seconds, "bytes_up": done.bytes_up, "bytes_down": done.bytes_down}
        for tag, value in (figures | losses).items():
            record = create_analytic_dxo(tag, float(value), AnalyticsDataType.SCALAR, global_step=done.number + 1)
            send_analytic_dxo(self, record, fl_ctx, ANALYTIC_EVENT_TYPE)
