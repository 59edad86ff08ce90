"""The admin: submits runs as jobs of FLARE, asks for their status, stops them, and fetches their run folders."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import WorkspaceConstants
from nvflare.apis.job_def import JobMetaKey
from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    CommandError,
    InternalError,
    InvalidJobDefinition,
    InvalidTarget,
    JobNotDone,
    JobNotFound,
    JobNotRunning,
    NoConnection,
    NoReply,
    SessionClosed,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from manyhands.errors import KitError, RecipeError
from manyhands.federation.job.folder import OURS, STATUS, write_job
from manyhands.federation.kit import RESULTS, SERVER, load_kit
from manyhands.federation.log import root_cause
from manyhands.files.write import disk_errors, replace_folder
from manyhands.runs.recipe import Recipe

CONNECT_SECONDS, COMMAND_SECONDS = 10.0, 30.0
"""How long to wait for the server at first, and for what it is asked to do."""
WAITING, RUNNING = frozenset({"SUBMITTED", "APPROVED"}), frozenset({"DISPATCHED", "RUNNING"})
"""FLARE's states of a job that is not over."""
REFUSALS = (
    JobNotFound, JobNotDone, JobNotRunning, InternalError, NoReply, InvalidTarget, InvalidJobDefinition, CommandError
)  # fmt: skip
SILENCES = (JobNotRunning, NoReply, NoConnection, InternalError, AuthorizationError)
"""Why a running job may tell nothing of its run: it begins, was killed, has just ended, or this user may not ask."""
COMPLETED, ABORTED = "FINISHED:COMPLETED", "FINISHED:ABORTED"
LAST_JOBS = 3
"""How many of the newest jobs the status shows, whether they are over or not."""


class Admin:
    """A session with FLARE's server, with the kit of a user.

    Args:
        folder: The folder of the kit.
        seconds: How long to wait for the server.
    """

    def __init__(self, folder: Path, seconds: float = CONNECT_SECONDS) -> None:
        kit = load_kit(folder, "admin")
        logging.getLogger("nvflare").setLevel(logging.CRITICAL)  # what goes wrong is raised
        self._who, self._where = kit.party, f"{kit.host}:{kit.port}"
        with self._errors():
            self._session: Session = new_secure_session(kit.party, str(folder.resolve()), timeout=seconds)
            self._session.set_timeout(COMMAND_SECONDS)

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session."""
        with suppress(Exception), redirect_stdout(io.StringIO()):
            self._session.close()

    def submit(
        self, recipe: Recipe, sites: Sequence[str] = (), run: str = "", track: Sequence[str] = ()
    ) -> tuple[str, str]:
        """Submit a run; return its name and the id of its job.

        Args:
            recipe: The recipe.
            sites: The sites that take part; none means all.
            run: The name of the run; "" means that of the recipe, with a number if a run of this name has ended or is
                running.
            track: The receivers of FLARE that get the figures of each round, at the server.
        """
        with tempfile.TemporaryDirectory() as folder, self._errors():
            name = run or self._free_name(recipe.name)
            return name, str(self._session.submit_job(str(write_job(recipe, Path(folder) / "job", sites, name, track))))

    def status(self) -> dict[str, Any]:
        """Return the sites that are connected, the jobs that are not over, and the last ones that are."""
        with self._errors():
            jobs = self._jobs()
            shown = [job for job in jobs[:-LAST_JOBS] if _stage(job) in WAITING | RUNNING] + jobs[-LAST_JOBS:]
            return {"sites": self.sites(), "jobs": [self._describe(job) for job in shown]}

    def sites(self) -> dict[str, float]:
        """Return the sites that are connected, and when each was last heard of, in seconds since 1970."""
        with self._errors():
            return {client.name: client.last_connect_time for client in self._session.get_system_info().client_info}

    def job(self, job: str) -> dict[str, Any]:
        """Return the state of one job, by its id."""
        with self._errors():
            return self._describe(self._session.get_job_meta(job))

    def stop(self, run: str) -> str:
        """Stop a run; return its name."""
        with self._errors():
            job = self._find(run, lambda job: _stage(job) in WAITING | RUNNING)
            self._session.abort_job(job["job_id"])
            return str(job["name"])

    def fetch(self, run: str, out: Path) -> Path:
        """Download the server's run folder."""
        parent = out.resolve().parent
        with disk_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
        with self._errors(), tempfile.TemporaryDirectory(dir=parent) as folder:
            job = self._find(
                run, lambda job: _stage(job) == COMPLETED, lambda job: _stage(job) not in WAITING | RUNNING
            )
            results = Path(self._session.download_job_result(job["job_id"], folder)) / "workspace" / RESULTS
            if not results.is_dir():
                raise KitError(f"{job['name']}: its job has no run folder: {self._why(job)}")
            with replace_folder(out) as fresh:
                fresh.rmdir()
                results.rename(fresh)
        return out

    def log(self, run: str, site: str) -> str:
        """Return the log of a run's job at the server, or the errors of a site that streams them."""
        with self._errors():
            job = self._find(run, lambda _: True)
            file = WorkspaceConstants.LOG_FILE_NAME if site == SERVER else WorkspaceConstants.ERROR_LOG_FILE_NAME
            logs = self._session.get_job_logs(job["job_id"], site, log_file_name=file)
        if site not in logs["logs"]:
            why = logs.get("unavailable", {}).get(site, "no such party")
            raise RecipeError(f"{site}: {why}; it had no errors, or its policy has logs = false")
        return str(logs["logs"][site])

    def _jobs(self) -> list[dict[str, Any]]:
        """Return FLARE's jobs that are runs of ours, the newest last."""
        return [job for job in self._session.list_jobs(detailed=True) if OURS in job]

    def _free_name(self, name: str) -> str:
        """Return the name for a run; one that was stopped or has failed goes on under its name."""
        kept = WAITING | RUNNING | {COMPLETED}
        taken = {job["name"] for job in self._jobs() if _stage(job) in kept}
        candidates = (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3)))
        return next(candidate for candidate in candidates if candidate not in taken)

    def _describe(self, job: dict[str, Any]) -> dict[str, Any]:
        """Describe a job, and its run if it is running."""
        stage = _stage(job)
        state = {"job": job["job_id"], "name": job["name"], "stage": stage, "why": ""}
        if stage in RUNNING:
            with suppress(*SILENCES):
                state |= self._session.do_app_command(job["job_id"], STATUS, None)
        elif stage == ABORTED:
            state["why"] = "it was stopped; submitting it again goes on with it"
        elif stage not in WAITING and stage != COMPLETED:
            try:
                state["why"] = self._why(job)
            except AuthorizationError:
                state["why"] = f"{self._who} may not read its log"
        return state

    def _why(self, job: dict[str, Any]) -> str:
        """The reason why a job has failed: the first error in its log, not the last one of a chain."""
        details = [line for line in job.get(JobMetaKey.JOB_DEPLOY_DETAIL.value) or () if not line.endswith(": OK")]
        if details:
            return "; ".join(details)
        file = WorkspaceConstants.ERROR_LOG_FILE_NAME
        cause = root_cause(self._session.get_job_logs(job["job_id"], "all", log_file_name=file)["logs"])
        hint = "probably a process of it or of FLARE was killed (see log.txt in the kits)"
        return cause or f"no party has reported why; {hint}. Submitting it again goes on with it"

    def _find(self, run: str, *are_meant: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the newest job of a run, or of any run, that is meant in the first place, or else in the next."""
        jobs = [job for job in self._jobs() if run in ("", job["name"], job["job_id"])]
        for is_meant in are_meant:
            if meant := [job for job in jobs if is_meant(job)]:
                return meant[-1]
        if jobs:
            raise RecipeError(f"{jobs[-1]['name']}: its job is {_stage(jobs[-1])}")
        names = ", ".join(dict.fromkeys(job["name"] for job in self._jobs()))
        raise RecipeError(f"{run or '--run'}: there is no such run; there are: {names or 'none'}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Say what FLARE's errors mean; FLARE also prints, which nobody asked for."""
        try:
            with redirect_stdout(io.StringIO()):
                yield
        except (NoConnection, SessionClosed) as error:
            raise KitError(f"{self._where}: no server answers, or it does not know this kit") from error
        except (AuthenticationError, AuthorizationError) as error:
            raise KitError(f"{self._who}: may not do this: {error}") from None
        except REFUSALS as error:
            raise KitError(f"{self._where}: FLARE's server refuses: {error}") from None


def is_over(job: dict[str, Any]) -> bool:
    """Whether a job that ``status`` has described is over."""
    return job["stage"] not in WAITING | RUNNING


def _stage(job: dict[str, Any]) -> str:
    return str(job["status"])
