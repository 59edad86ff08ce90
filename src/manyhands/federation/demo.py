"""A whole federation on this machine: the server and each site are processes of FLARE that listen on loopback only."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyhands.errors import KitError, ManyhandsError
from manyhands.federation import parent
from manyhands.federation.admin import COMPLETED, Admin, is_over
from manyhands.federation.kit import ADMIN, KEPT, RUNS, SERVER, load_kit
from manyhands.federation.policy import PUBLIC_IMAGES, Policy
from manyhands.federation.prepare import prepare
from manyhands.federation.provision import new_kits

if TYPE_CHECKING:
    from manyhands.runs.recipe import Recipe

LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 120.0
"""Seconds in which a server that was just started must answer, and its sites be connected."""


class LocalFederation:
    """A federation whose kits, logs and runs are in one folder; ``with`` starts its processes and ends them.

    Args:
        folder: The folder.
        sites: The names of the sites.
        policy: The policy of every site.
        users: Further users, as EMAIL:ROLE.
        launcher: Whether a killed job is restarted.
    """

    def __init__(
        self, folder: Path, sites: Sequence[str], policy: Policy = PUBLIC_IMAGES, *, users: Sequence[str] = (),
        launcher: bool = True,
    ) -> None:  # fmt: skip
        self.folder, self.sites, self.port, self.kits = folder, list(sites), free_port(), folder / "kits"
        new_kits(f"{LOOPBACK}:{self.port}", self.sites, self.kits, users=users, launcher=launcher)
        for site in self.sites:
            prepare(self.kits / site, policy, launcher=launcher)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, party: str) -> None:
        """Start FLARE's process of a party."""
        with (self.folder / f"{party}.log").open("ab") as log:
            self.processes[party] = parent.start(load_kit(self.kits / party, "server", "site"), log)

    def run(self, name: str) -> Path:
        """Return the server's run folder."""
        return self.kits / SERVER / KEPT / RUNS / name

    def kept(self, site: str, run: str) -> Path:
        """Return the folder of what a site keeps of a run."""
        return self.kits / site / KEPT / RUNS / run

    def log(self, party: str) -> str:
        """Return the log of a party."""
        return (self.folder / f"{party}.log").read_text(errors="replace")

    def admin(self) -> Admin:
        """Connect the admin as soon as the server answers and all sites are connected."""
        end = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                admin = Admin(self.kits / ADMIN)
                if len(admin.sites()) == len(self.sites):
                    return admin
                admin.close()
            except KitError:
                if self.processes[SERVER].poll() is not None:
                    raise
            if time.monotonic() > end:
                raise KitError(f"{self.folder}: the federation did not start; its logs say why")
            time.sleep(0.2)

    def __enter__(self) -> LocalFederation:
        with ExitStack() as stack:
            stack.callback(self.end)
            for party in (SERVER, *self.sites):
                self.start(party)
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End every process; those of jobs end with their parents."""
        for process in self.processes.values():
            parent.end(process)


def demo_recipe(path: Path, changes: Sequence[str]) -> Recipe:
    """Load a recipe for a few sites: one for each of its domains, or three, unless ``changes`` say otherwise."""
    from manyhands.runs.recipe_file import check_lists_classes, load_recipe, read_recipe

    fields = read_recipe(path, changes)
    check_lists_classes(fields, str(path))
    data = fields.get("data")
    domains = data.get("domains") if isinstance(data, dict) else None
    return load_recipe(path, [f"partition.silos={len(domains) if domains else 3}", *changes])


def demo(recipe: Recipe, out: Path, log: Callable[[str], None]) -> Path:
    """Run a recipe between processes of this machine; return the run folder of the server."""
    sites = recipe.silo_names
    out.mkdir(parents=True, exist_ok=True)
    with LocalFederation(out, sites) as federation:
        log(f"starting FLARE: the server and {len(sites)} sites are processes of this machine; their logs are in {out}")
        with federation.admin() as admin:
            run, job = admin.submit(recipe)
            last = ""
            for status in watch(admin, job):
                line = _progress(status) or last
                if line != last:
                    log(line)
                last = line
    if status["stage"] != COMPLETED:
        raise ManyhandsError(f"{out}: the run is {status['stage']}: {status['why']}")
    return federation.run(run)


def watch(admin: Admin, job: str, every: float = 0.5) -> Iterator[dict[str, Any]]:
    """Yield the state of a job again and again, until it is over."""
    while True:
        status = admin.job(job)
        yield status
        if is_over(status):
            return
        time.sleep(every)


def _progress(status: dict[str, Any]) -> str:
    """Return how far a run is; "" while its server begins, computes or ends."""
    run = status.get("run")
    return f"round {run['round']}/{run['rounds']}, {run['stage']} {run['why']}".rstrip() if run else ""


def free_port() -> int:
    """Return a port on which nothing listens now."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])
