"""What the jobs of benchmarks have in common: a server without tasks, and a site that works in a thread of its own."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import ReturnCode, Shareable, make_reply

from manyhands import __version__
from manyhands.federation.job.folder import OURS


class JobServer(Controller):  # type: ignore[misc]  # FLARE has no types
    """A controller that gives no task; what it does is its ``control_flow``."""

    def __init__(self) -> None:
        super().__init__(task_check_period=0.1)

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing."""

    def process_result_of_unknown_task(self, **_: Any) -> None:
        """Do nothing."""


class JobSite(Executor):  # type: ignore[misc]
    """An executor that gets no task, and begins to work with the job's process.

    Attributes:
        over: Is set when the job ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()
        self.register_event_handler(EventType.START_RUN, self._begin)
        self.register_event_handler(EventType.END_RUN, lambda *_: self.over.set())

    def execute(self, *_: Any) -> Shareable:
        """Do nothing."""
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def work(self, fl_ctx: FLContext) -> None:
        """Do what this site does in the job."""
        raise NotImplementedError

    def _begin(self, _event: str, fl_ctx: FLContext) -> None:
        threading.Thread(target=self.work, args=(fl_ctx,), daemon=True).start()


Component = tuple[str, dict[str, Any]]
"""The path of a component's class, and its arguments."""


def write(out: Path, name: str, deploy: list[str], server: Component, site: Component) -> Path:
    """The folder of a job.

    Args:
        out: The folder.
        name: The name of the job.
        deploy: The parties that take part.
        server: The component of the server.
        site: The component of each site.
    """
    workflow = {"id": name, "path": server[0], "args": server[1]}
    executor = {"tasks": [name], "executor": {"path": site[0], "args": site[1]}}
    config = out / "app" / "config"
    config.mkdir(parents=True)
    meta = {"name": name, OURS: __version__, "resource_spec": {}, "min_clients": 1, "deploy_map": {"app": deploy}}
    (out / "meta.json").write_text(json.dumps(meta))
    for party, part in {"server": {"workflows": [workflow]}, "client": {"executors": [executor]}}.items():
        filters: dict[str, Any] = {"task_data_filters": [], "task_result_filters": [], "components": []}
        (config / f"config_fed_{party}.json").write_text(json.dumps({"format_version": 2, **part, **filters}))
    return out
