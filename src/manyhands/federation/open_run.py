"""The run of a job at the server: it begins, or goes on where an earlier process or job has left it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from manyhands.errors import RunFolderError
from manyhands.federation.enrolment import Enrolment
from manyhands.federation.plans import ENDING_SECONDS
from manyhands.federation.run_session import OPEN, SESSION_FILE, RunSession
from manyhands.runs.recipe_file import parse_recipe
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


def load_run_session(folder: RunFolder, device: torch.device, now: float) -> RunSession:
    """Load the run that a server kept in this folder; it gathers its sites again unless it is over."""
    try:
        state = json.loads((folder.path / SESSION_FILE).read_text())
        recipe = parse_recipe(folder.recipe, str(folder.path / "recipe.toml"))
        session = RunSession(folder, recipe, Enrolment.load(state), device, now, why=state["why"], job=state["job"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{folder.path}: holds no run between sites: {error}") from None
    if state["stage"] not in OPEN:
        session.stage = state["stage"]
    if session.stage == "ended":
        session.ledger.load(folder.ledger)
    return session
