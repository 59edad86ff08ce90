"""Federations on this machine: a small recipe, its run in one process and as a job, and the processes of a party."""

from __future__ import annotations

import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import psutil
from nvflare.fuel.flare_api.flare_api import new_secure_session

from harness import bench
from harness.proxy import Proxy, proxy
from manyhands import compose, load_recipe
from manyhands.federation import parent
from manyhands.federation.admin import COMPLETED, Admin
from manyhands.federation.demo import LocalFederation, watch
from manyhands.federation.kit import ADMIN, SERVER
from manyhands.federation.provision import FIRST_ADMIN
from manyhands.runs.recipe import Recipe
from manyhands.runs.run_folder import RunFolder
from manyhands.tensors import sha256

RECIPES = bench.ROOT / "recipes"
SMALL = ("data.limit=240", "evaluation.images=0", "method.rounds=3", "method.training.steps=10")
METHODS = {
    "digits-fedavg": ("method.model.widths=[8]",),
    "digits-huscf": ("method.model.width=4", "method.training.batch=8"),
    "digits-collafuse": ("method.model.widths=[8]", "sampling.steps=3", "method.ask=any"),
}
ALLOWED = "harness."
"""The classes of the benchmarks, which jobs may name here beside those of the package."""


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
    folders = {site: RunFolder(federation.kept(site, run)) for site in sites}
    return weights(RunFolder(federation.run(run)), kept_memories(folders, rounds))


def kept_memories(folders: dict[str, RunFolder], rounds: int) -> dict[str, Any]:
    """What each site has kept of its last round, but for those that keep nothing."""
    memories = {site: folder.memory(site, rounds) for site, folder in folders.items()}
    return {site: memory for site, memory in memories.items() if memory}


def differing(one: dict[str, str], other: dict[str, str]) -> int:
    """How many of the hashes are not the same."""
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


def ended(admin: Admin, job: str) -> dict[str, Any]:
    """How a job ended."""
    *_, last = watch(admin, job, 0.2)
    return last


def completed(federation: LocalFederation, admin: Admin, job: str) -> None:
    """Wait for the end of a job, which must be a good one."""
    if (last := ended(admin, job))["stage"] != COMPLETED:
        raise SystemExit(f"{last}\n{federation.log(SERVER)}")


def submit(federation: LocalFederation, folder: Path) -> str:
    """Submit a job that is no run of the package; return its id."""
    with redirect_stdout(io.StringIO()):
        session = new_secure_session(FIRST_ADMIN, str((federation.kits / ADMIN).resolve()))
        try:
            return str(session.submit_job(str(folder)))
        finally:
            session.close()


@contextmanager
def planned(sites: int, **options: Any) -> Iterator[LocalFederation]:
    """A federation of so many sites that has not begun, whose jobs may name the classes of the benchmarks."""
    names = [f"silo-{i}" for i in range(sites)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        federation = LocalFederation(Path(folder), names, **options)
        for party in (SERVER, *names):
            change_json(federation.kits / party / "local" / "resources.json", _allow)
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if str(bench.PROGRAMS) not in paths:
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*paths, str(bench.PROGRAMS)]))
        yield federation


@contextmanager
def up(sites: int, **options: Any) -> Iterator[tuple[LocalFederation, Admin, list[str]]]:
    """A federation of so many sites."""
    with planned(sites, **options) as federation, federation, federation.admin() as admin:
        yield federation, admin, federation.sites


@contextmanager
def stretched(sites: int, delay: float = 0.0) -> Iterator[tuple[LocalFederation, Admin, Proxy]]:
    """The same, with a stretch of network between the sites and the server."""
    with planned(sites) as federation, proxy(federation.port, delay) as stretch:
        for site in federation.sites:
            change_json(federation.kits / site / "startup" / "fed_client.json", lambda kit: _detour(kit, stretch.port))
        with federation, federation.admin() as admin:
            yield federation, admin, stretch


def change_json(path: Path, change: Callable[[Any], None]) -> None:
    """Change a file of a kit or of a job."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _allow(resources: Any) -> None:
    resources["class_allow_list"].append(ALLOWED)


def _detour(kit: Any, port: int) -> None:
    service = kit["servers"][0]["service"]
    service["target"] = f"{service['target'].rpartition(':')[0]}:{port}"


def end(federation: LocalFederation, party: str) -> None:
    """Kill all processes of a party, at once."""
    parent.end(federation.processes[party])


def processes(federation: LocalFederation, *parties: str) -> list[psutil.Process]:
    """FLARE's processes of these parties, or of all, and those of their jobs."""
    roots = [psutil.Process(federation.processes[party].pid) for party in parties or federation.processes]
    return [child for root in roots for child in (root, *root.children(recursive=True))]


def job_process(federation: LocalFederation, party: str, job: str) -> psutil.Process | None:
    """The process of a job at a party, if there is one now."""
    return next((each for each in reversed(processes(federation, party)) if job in each.cmdline()), None)


def until(is_so: Callable[[], bool], seconds: float = 180.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise SystemExit("what was waited for did not come")
        time.sleep(0.02)
