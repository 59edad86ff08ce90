"""Federations on this machine: a small recipe, its run in one process and between sites, and the end of a party."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from harness import bench
from manyhands import compose, load_recipe
from manyhands.federation.admin import Admin
from manyhands.federation.demo import LocalFederation, watch
from manyhands.federation.kit import SERVER
from manyhands.runs.recipe import Recipe
from manyhands.runs.run_folder import RunFolder
from manyhands.tensors import sha256

RECIPES = bench.ROOT / "recipes"
SMALL = ("data.limit=240", "evaluation.images=0", "method.rounds=3", "method.training.steps=10")
METHODS = {
    "digits-fedavg": ("method.model.widths=[8]",),
    "digits-huscf": ("method.model.width=4", "method.training.batch=8"),
    "digits-collafuse": ("method.model.widths=[8]", "sampling.steps=3"),
}


def recipe(name: str, silos: int, *changes: str) -> Recipe:
    """A shipped recipe, small."""
    return load_recipe(RECIPES / f"{name}.toml", [*SMALL, f"partition.silos={silos}", *METHODS[name], *changes])


def weights(folder: RunFolder, memories: dict[str, Any]) -> dict[str, str]:
    """A hash of what the server has, and of what each site has, at the end."""
    state = folder.state()
    return {"": sha256(state.server)} | {site: sha256(memory) for site, memory in (memories or state.memories).items()}


def alone(asked: Recipe, folder: Path) -> dict[str, str]:
    """The same of a run in one process."""
    for _ in compose(asked, folder):
        pass
    run = RunFolder(folder)
    return weights(run, {site: memory for site, memory in run.state().memories.items() if memory})


def alone_seconds(asked: Recipe, folder: Path) -> float:
    """The median seconds of a round in one process, but for the first."""
    return statistics.median([done.seconds for done in compose(asked, folder)][1:])


def between(federation: LocalFederation, run: str, rounds: int, sites: list[str]) -> dict[str, str]:
    """The same of a run between sites."""
    memories = {site: RunFolder(federation.kept(site, run)).memory(site, rounds) for site in sites}
    return weights(
        RunFolder(federation.folder / SERVER / run), {site: state for site, state in memories.items() if state}
    )


def ended(admin: Admin) -> dict[str, Any]:
    """How the newest run ended."""
    *_, last = watch(admin, 0.1)
    return last


@contextmanager
def up(sites: int, **options: Any) -> Iterator[tuple[LocalFederation, Admin, list[str]]]:
    """A federation of so many sites."""
    names = [f"silo-{i}" for i in range(sites)]
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalFederation(Path(folder), names, **options) as federation,
        federation.admin() as admin,
    ):
        yield federation, admin, names


def worker_of(federation: LocalFederation, party: str) -> psutil.Process | None:
    return next(iter(psutil.Process(federation.processes[party].pid).children()), None)


def end(federation: LocalFederation, party: str) -> None:
    """Kill both processes of a party, at once."""
    worker, supervisor = worker_of(federation, party), federation.processes[party]
    for each in (supervisor.pid, *([worker.pid] if worker else [])):
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(each).kill()
    supervisor.wait()
