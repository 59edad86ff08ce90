"""FLARE's launchers of processes, made to restart killed ones; and what goes on after FLARE itself was restarted.

``prepare`` names them in ``local/resources.json`` of a party. As FLARE ships, a job ends when one of its processes is
killed, and a restarted parent brings nothing back.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvflare.apis.client import from_dict
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle, ProcessJobLauncher
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher
from nvflare.utils.process_utils import spawn_process

from manyhands.federation.job.folder import DONE, MARK
from manyhands.federation.job.orphan import PARENT
from manyhands.files.strict_json import finite_json
from manyhands.files.write import replace_file

MIN_WAIT_SECONDS, MAX_WAIT_SECONDS = 0.5, 10.0
"""The wait before a killed process is restarted doubles from the minimum to the maximum."""
HEALTHY_SECONDS = 30.0
"""A process that ran for this many seconds is restarted without a longer wait."""


class RestartingHandle(JobHandleSpec):  # type: ignore[misc]  # FLARE has no types
    """A job's process, which is restarted whenever a signal has killed it that FLARE did not send.

    Args:
        begin: Begins the process.
        mark: The file that says that the job runs. With ``DONE`` beside it, the process is not restarted.
        keeps_mark: Whether the mark stays when the process has ended.
    """

    def __init__(self, begin: Callable[[], ProcessHandle], mark: Path, *, keeps_mark: bool = False) -> None:
        super().__init__()
        self._begin, self._mark, self._keeps_mark = begin, mark, keeps_mark
        self._process, self._has_done_its_part = begin(), False
        self._stop, self._ended = threading.Event(), threading.Event()
        threading.Thread(target=self._keep, daemon=True).start()

    def terminate(self) -> None:
        """End the process for good; called by FLARE."""
        self._stop.set()
        self._process.terminate()

    def poll(self) -> Any:
        """Return the code with which the process has ended for good, or ``UNKNOWN``."""
        if not self._ended.is_set():
            return JobReturnCode.UNKNOWN
        return JobReturnCode.SUCCESS if self._has_done_its_part else self._process.poll()

    def wait(self) -> None:
        """Wait until the process has ended for good."""
        self._ended.wait()

    def _keep(self) -> None:
        wait = MIN_WAIT_SECONDS
        while True:
            began = time.monotonic()
            self._process.wait()
            self._has_done_its_part = _is_done(self._mark) and not self._stop.is_set()
            if self._has_done_its_part or self._stop.is_set() or not _was_killed(self._process.adapter.poll()):
                break
            wait = MIN_WAIT_SECONDS if time.monotonic() - began > HEALTHY_SECONDS else min(2 * wait, MAX_WAIT_SECONDS)
            if self._stop.wait(wait):
                break
            self._process = self._begin()
        if not self._keeps_mark:
            self._mark.unlink(missing_ok=True)
        self._ended.set()


class _RestartingLauncher(ProcessJobLauncher):  # type: ignore[misc]
    keeps_mark = False

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> JobHandleSpec:
        """Begin a job's process; called by FLARE."""
        keys = (FLContextKey.JOB_PROCESS_ARGS, FLContextKey.WORKSPACE_OBJECT)
        props = {key: fl_ctx.get_prop(key) for key in keys}

        def begin() -> ProcessHandle:
            if _is_done(mark):  # FLARE wants to know how the process ended, so there has to be one
                return ProcessHandle(process_adapter=spawn_process([sys.executable, "-c", ""], dict(os.environ)))
            for key, value in props.items():
                fl_ctx.set_prop(key, value, private=True, sticky=False)
            return super(_RestartingLauncher, self).launch_job(job_meta, fl_ctx)

        os.environ[PARENT] = str(os.getpid())  # which the process of the job inherits
        mark = Path(props[FLContextKey.WORKSPACE_OBJECT].get_run_dir(job_meta[JobMetaKey.JOB_ID.value])) / MARK
        replace_file(mark, finite_json(job_meta).encode())
        return RestartingHandle(begin, mark, keeps_mark=self.keeps_mark)


def _is_done(mark: Path) -> bool:
    """Whether the party has done its part in the job of this mark."""
    return mark.with_name(DONE).exists()


def _was_killed(code: int | None) -> bool:
    return code is not None and (code < 0 or code > 128)


class ServerLauncher(_RestartingLauncher, ServerProcessJobLauncher):  # type: ignore[misc]
    """At the server."""

    keeps_mark = True  # until FLARE has stored the results, and with them removes the folder of the job


class SiteLauncher(_RestartingLauncher, ClientProcessJobLauncher):  # type: ignore[misc]
    """At a site."""


class _Resumer(FLComponent):  # type: ignore[misc]
    """Restarts the jobs that were running when the party's own process of FLARE was killed."""

    events: tuple[str, ...] = ()
    """The events at which FLARE is ready to begin jobs."""

    def __init__(self) -> None:
        super().__init__()
        self._lock, self._has_resumed = threading.Lock(), False
        self.register_event_handler(list(self.events), self._resume_once)

    def _resume_once(self, _event: str, fl_ctx: FLContext) -> None:
        with self._lock:
            if not self._has_resumed and fl_ctx.get_prop(FLContextKey.SERVER_CONFIG):
                self._has_resumed = True
                self._resume_all(fl_ctx)

    def _resume_all(self, fl_ctx: FLContext) -> set[str]:
        """Restart the jobs whose processes were running; return their ids."""
        root, jobs = Path(fl_ctx.get_engine().args.workspace), set()
        for mark in root.glob(f"*/{MARK}"):
            job = mark.parent.name
            try:
                self.resume(job, json.loads(mark.read_text()), fl_ctx)
            except Exception as error:  # another job must not be lost for it
                self.log_error(fl_ctx, f"job {job} cannot go on: {error}", fire_event=False)
                continue
            self.log_info(fl_ctx, f"job {job} was running: it goes on", fire_event=False)
            jobs.add(job)
        return jobs

    def resume(self, job: str, job_meta: dict[str, Any], fl_ctx: FLContext) -> None:
        """Restart a job."""
        raise NotImplementedError


class SiteResumer(_Resumer):
    """At a site, before the server learns which jobs run here."""

    events = (EventType.AFTER_CLIENT_REGISTER,)

    def resume(self, job: str, job_meta: dict[str, Any], fl_ctx: FLContext) -> None:
        """Restart the process of the site."""
        engine = fl_ctx.get_engine()
        engine.start_app(job, job_meta, None, None, engine.get_component(SystemComponents.RESOURCE_MANAGER))


class ServerResumer(_Resumer):
    """At the server, before the first site learns which jobs run. The processes of the sites go on, and reconnect."""

    events = (EventType.CLIENT_REGISTER_RECEIVED, EventType.CLIENT_HEARTBEAT_RECEIVED)

    def __init__(self) -> None:
        super().__init__()
        self._resumed: set[str] = set()
        self.register_event_handler(EventType.CLIENT_HEARTBEAT_RECEIVED, self._resolve)

    def _resume_all(self, fl_ctx: FLContext) -> set[str]:
        """Do the same; other jobs that FLARE's store calls running have failed."""
        jobs = super()._resume_all(fl_ctx)
        fl_ctx.get_engine().job_runner.update_abnormal_finished_jobs(jobs, fl_ctx)
        return jobs

    def resume(self, job: str, job_meta: dict[str, Any], fl_ctx: FLContext) -> None:
        """Restart the process of the server, for the sites that it had."""
        clients = [from_dict(client) for client in job_meta[JobMetaKey.JOB_CLIENTS.value]]
        runner = fl_ctx.get_engine().job_runner
        runner.restore_running_job(job, {client.name: client for client in clients}, None, fl_ctx)
        self._resumed.add(job)

    def _resolve(self, _event: str, fl_ctx: FLContext) -> None:
        """Expect no word of a site on a job whose run has ended: it may have sent it to the server that was killed."""
        engine, site = fl_ctx.get_engine(), fl_ctx.get_peer_context().get_identity_name()
        for job in self._resumed - engine.run_processes.keys():
            engine.job_runner.resolve_client_outcome(job, site)
