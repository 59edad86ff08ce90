"""The run of a job at the server: it begins, or goes on where an earlier process or job has left it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from manyhands.errors import RunFolderError
from manyhands.federation.enrolment import Enrolment
from manyhands.federation.plans import ENDING_SECONDS
from manyhands.federation.run_session import SESSION_FILE, RunSession, load_run_session
from manyhands.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from manyhands.runs.recipe import Recipe


@contextmanager
def open_run(
    path: Path, recipe: Recipe, sites: Sequence[str], job: str, device: torch.device, now: float
) -> Iterator[RunSession]:
    """Open the run of a job; no other process can use its folder meanwhile.

    Args:
        path: The run folder.
        recipe: The recipe.
        sites: The sites of the job. A run that has trained before goes on with those that it had.
        job: The id of the job.
        device: Where the server computes.
        now: The time in seconds.

    Raises:
        RunFolderError: The run has ended, has another recipe, or another job is running it.
    """
    folder = RunFolder(path)
    is_kept = (path / SESSION_FILE).exists()
    with folder.open(recipe.resolved(), resume=is_kept, patience=ENDING_SECONDS):
        if is_kept:
            session = load_run_session(folder, device, now)
            if session.stage == "ended" and session.job != job:
                raise RunFolderError(f"{path.name}: the run has ended; submit it under another name with --run")
            if not session.sites.roster:
                session.sites.expected = tuple(sites)
        else:
            session = RunSession(folder, recipe, Enrolment(tuple(sites)), device, now)
        session.go_on(job)
        yield session
