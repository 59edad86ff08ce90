"""A whole federation on this machine: the server and each site are processes that listen on loopback only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyhands.errors import ManyhandsError
from manyhands.federation.admin import Admin
from manyhands.federation.kit import ADMIN, SERVER, new_kits
from manyhands.federation.run_session import OVER
from manyhands.federation.site import RUNS

if TYPE_CHECKING:
    from manyhands.runs.recipe import Recipe

LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 60.0
"""Seconds in which a server that was just started must listen."""
POLICY = 'approve = "limits"\nlabels = true\ncomputable = true\nmax_snr_db = 200\ndata = "recipe"\n'
"""For public images: labels may leave, images may be computable, and noise may be negligible."""


def connect_admin(kits: Path, server: subprocess.Popen[bytes]) -> Admin:
    """Connect the admin as soon as a server that was just started listens."""
    end = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            return Admin(kits / ADMIN)
        except ManyhandsError:
            if time.monotonic() > end or server.poll() is not None:
                raise
            time.sleep(0.2)


class LocalFederation:
    """A federation whose kits, logs and runs are in one folder; ``with`` starts its processes and ends them.

    Args:
        folder: The folder.
        sites: The names of the sites.
        policy: The policy of every site, as TOML.
        port: The port on which the server listens; 0 means any free one.
        through: The port to which the sites connect if it is not the server's, as behind a proxy.
    """

    def __init__(
        self, folder: Path, sites: Sequence[str], policy: str = POLICY, port: int = 0, through: int = 0
    ) -> None:
        self.folder, self.sites, self.port = folder, list(sites), port or free_port()
        new_kits(f"{LOOPBACK}:{through or self.port}", self.sites, folder / "kits")
        (folder / "policy.toml").write_text(policy)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, party: str) -> None:
        """Start the process of a party, with the command that its operator would type."""
        kit = str(self.folder / "kits" / party)
        if party == SERVER:
            arguments = ["serve", kit, "--host", LOOPBACK, "--port", str(self.port), "--device", "cpu"]
            arguments += ["--out", str(self.folder / SERVER)]
        else:
            arguments = ["join", kit, "--policy", str(self.folder / "policy.toml"), "--out", str(self.site(party))]
        with (self.folder / f"{party}.log").open("ab") as log:
            command = [sys.executable, "-m", "manyhands", "federation", *arguments]
            self.processes[party] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def site(self, name: str) -> Path:
        """Return the folder of what a site keeps."""
        return self.folder / "sites" / name

    def kept(self, site: str, run: str) -> Path:
        """Return the folder of what a site keeps of a run."""
        return self.site(site) / RUNS / run

    def log(self, party: str) -> str:
        """Return the log of a party."""
        return (self.folder / f"{party}.log").read_text(errors="replace")

    def admin(self) -> Admin:
        """Connect the admin as soon as the server listens."""
        return connect_admin(self.folder / "kits", self.processes[SERVER])

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
        """Kill every process; a worker ends with its supervisor."""
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


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
    with LocalFederation(out, sites) as federation, federation.admin() as admin:
        run, last = str(admin.submit(recipe, [])["run"]), ""
        log(f"the server and {len(sites)} sites are processes of this machine; their logs are in {out}")
        for status in watch(admin):
            line = f"round {status['round']}/{status['rounds']}, {status['stage']} {status['why']}".rstrip()
            if line != last:
                log(line)
            last = line
    if status["stage"] != "ended":
        raise ManyhandsError(f"{out}: the run is {status['stage']}: {status['why']}")
    return out / SERVER / run


def watch(admin: Admin, every: float = 0.5) -> Iterator[dict[str, Any]]:
    """Yield the state of the newest run again and again, until it is over."""
    while True:
        status = admin.status()["run"]
        yield status
        if status["stage"] in OVER:
            return
        time.sleep(every)


def free_port() -> int:
    """Return a port on which nothing listens now."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])
