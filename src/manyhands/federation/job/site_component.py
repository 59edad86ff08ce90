"""A site's component of a FLARE job: an executor that takes part in one run, under the site's own policy."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.fuel.f3.cellnet.fqcn import FQCN

from manyhands.errors import KitError, ManyhandsError, RecipeError
from manyhands.federation.job.folder import DONE, check_job
from manyhands.federation.job.orphan import end_if_orphaned
from manyhands.federation.kit import KEPT, SERVER
from manyhands.federation.policy import PUBLIC_IMAGES, Policy
from manyhands.federation.prepare import POLICY_FILE
from manyhands.federation.server_connection import RunAborted, ServerConnection
from manyhands.federation.site import Site, decline
from manyhands.links.flare_cell import CellConnection
from manyhands.runs.recipe_file import read
from manyhands.silos.memory import release_memory


class RunSite(Executor):  # type: ignore[misc]  # FLARE has no types
    """Takes part in one run. What it keeps is in the site's workspace, where a later job of the run goes on.

    It begins with the job's process and needs no task: FLARE gives none to a site that registers again.

    Args:
        recipe: The recipe, as TOML.
        run: The name of the run.
        version: The version of Manyhands that wrote the job.
    """

    def __init__(self, recipe: str, run: str, version: str) -> None:
        super().__init__()
        end_if_orphaned()
        self.recipe, self.run_name, self.version = recipe, run, version
        self._stop = threading.Event()
        self.register_event_handler(EventType.START_RUN, self._begin)
        self.register_event_handler(EventType.END_RUN, lambda *_: self._stop.set())

    def execute(self, *_: Any) -> Shareable:
        """Do nothing: a job must have an executor, but the server gives no task."""
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def _begin(self, _event: str, fl_ctx: FLContext) -> None:
        threading.Thread(target=self._take_part, args=(fl_ctx,), daemon=True).start()

    def _take_part(self, fl_ctx: FLContext) -> None:
        release_memory(at_once=False)
        workspace = fl_ctx.get_workspace()
        simulated = fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False)  # its server has no job process of its own
        server = FQCN.ROOT_SERVER if simulated else FQCN.join([FQCN.ROOT_SERVER, fl_ctx.get_job_id()])
        connect = partial(CellConnection, cell=fl_ctx.get_engine().get_cell(), peers={SERVER: server})
        connection, log = ServerConnection(connect, self._stop.is_set), self.logger.info
        try:
            try:
                check_job(self.run_name, self.version)
                policy = PUBLIC_IMAGES if simulated else _policy(Path(workspace.get_site_config_dir()) / POLICY_FILE)
                out = Path(workspace.get_root_dir()) / KEPT
                Site(fl_ctx.get_identity_name(), policy, out, connection, log).work(self.run_name, self.recipe)
            except ManyhandsError as error:
                decline(error, connection, self.logger.error)
            (Path(workspace.get_run_dir(fl_ctx.get_job_id())) / DONE).touch()
        except RunAborted:
            log("FLARE has ended the job before this site had finished")


def _policy(file: Path) -> Policy:
    if not file.exists():
        raise RecipeError("this site has no policy yet; manyhands federation prepare KIT --data DIR writes one")
    try:
        return read(Policy, file, "policy")
    except RecipeError as error:
        raise KitError(str(error)) from None  # the server is not told where this site keeps what
