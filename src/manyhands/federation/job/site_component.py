"""A site's component of a FLARE job: an executor that takes part in one run, under the site's own policy."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.fqcn import FQCN

from manyhands.errors import ManyhandsError
from manyhands.federation.job.server_component import FOLDER
from manyhands.federation.kit import SERVER
from manyhands.federation.policy import FROM_RECIPE, Policy
from manyhands.federation.server_connection import ServerConnection
from manyhands.federation.site import Site
from manyhands.links.flare_cell import CellConnection
from manyhands.runs.recipe_file import read
from manyhands.silos.memory import release_memory

POLICY_FILE = "manyhands.toml"
"""The site's policy, in ``local/`` of its kit."""
SIMULATED = Policy(approve="limits", labels=True, computable=True, data=FROM_RECIPE)
"""The policy of the sites of FLARE's simulator, which have no kit."""


class RunSite(Executor):  # type: ignore[misc]  # FLARE has no types
    """Takes part in one run. What it keeps is in the site's workspace, where a later job of the run goes on.

    It begins with the job's process and not with a task: FLARE gives no task to a site that registers again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stop, self._result = threading.Event(), ReturnCode.EXECUTION_EXCEPTION
        self._thread: threading.Thread | None = None
        self.register_event_handler(EventType.START_RUN, self._begin)
        self.register_event_handler([EventType.ABORT_TASK, EventType.END_RUN], lambda *_: self._stop.set())

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Wait until the site has finished; called by FLARE with the server's only task."""
        while self._thread and self._thread.is_alive() and not abort_signal.triggered:
            self._thread.join(0.5)
        self._stop.set()
        return make_reply(self._result)

    def _begin(self, _event: str, fl_ctx: FLContext) -> None:
        site = self._site(fl_ctx)
        self._thread = threading.Thread(target=self._take_part, args=(site,), daemon=True)
        self._thread.start()

    def _site(self, fl_ctx: FLContext) -> Site:
        workspace, name = fl_ctx.get_workspace(), fl_ctx.get_identity_name()
        simulated = fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False)  # its server has no job process of its own
        server = FQCN.ROOT_SERVER if simulated else FQCN.join([FQCN.ROOT_SERVER, fl_ctx.get_job_id()])
        connect = partial(CellConnection, cell=fl_ctx.get_engine().get_cell(), peers={SERVER: server})
        file = Path(workspace.get_site_config_dir()) / POLICY_FILE
        policy = SIMULATED if simulated else read(Policy, file, "policy")
        out = Path(workspace.get_root_dir()) / FOLDER
        return Site(name, policy, out, ServerConnection(connect), self.logger.info)

    def _take_part(self, site: Site) -> None:
        release_memory(at_once=False)
        try:
            site.work(lambda: not site.has_finished and not self._stop.is_set())
            self._result = ReturnCode.OK
        except ManyhandsError as error:
            self.logger.error(str(error))
