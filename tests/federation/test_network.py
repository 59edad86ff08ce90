"""Server and sites as processes of their own, over mutual TLS on loopback: the run is that of one process."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare")

import psutil

from manyhands.errors import KitError, RunFolderError
from manyhands.evaluation.spec import Evaluation
from manyhands.federation.admin import Admin
from manyhands.federation.demo import LOOPBACK, LocalFederation, watch
from manyhands.federation.kit import SERVER, load_kit, new_kits
from manyhands.runs.compose import compose
from manyhands.runs.finished import evaluate
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.shipped import recipe_path
from manyhands.tensors import sha256

pytestmark = pytest.mark.slow

Runs = Callable[[str], tuple[str, RunFolder]]
SITES = ["silo-0", "silo-1", "silo-2"]
SMALL = ["partition.silos=3", "data.limit=120", "evaluation.images=0", "method.rounds=3", "method.training.steps=2"]
METHODS = {
    "digits-fedavg": ["method.model.widths=[8]"],
    "digits-huscf": ["method.model.width=4", "method.training.batch=8"],
    "digits-collafuse": ["method.model.widths=[8]", "sampling.steps=3"],
}


def recipe(name: str, *changes: str) -> Recipe:
    return load_recipe(recipe_path(name), [*SMALL, *METHODS[name], *changes])


def in_one_process(recipe: Recipe, folder: Path) -> RunFolder:
    for _ in compose(recipe, folder):
        pass
    return RunFolder(folder)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    with LocalFederation(tmp_path_factory.mktemp("federation"), SITES) as started:
        yield started


@pytest.fixture(scope="module")
def admin(federation: LocalFederation) -> Iterator[Admin]:
    with federation.admin() as line:
        yield line


@pytest.fixture(scope="module")
def run_both(federation: LocalFederation, admin: Admin, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A recipe once between sites and once in one process: the name of the first, the folder of the second."""

    @cache
    def run(name: str) -> tuple[str, RunFolder]:
        asked = recipe(name)
        run = admin.submit(asked, [])["run"]
        assert ended(admin)["stage"] == "ended", federation.log(SERVER)
        return run, in_one_process(asked, tmp_path_factory.mktemp(name) / "one")

    return run


def worker(federation: LocalFederation, party: str) -> psutil.Process:
    """The process of a party that does the work."""
    supervisor = psutil.Process(federation.processes[party].pid)
    while not (children := supervisor.children()):
        time.sleep(0.05)
    return children[0]


def ended(admin: Admin) -> dict[str, Any]:
    *_, last = watch(admin, 0.1)
    return last


def assert_same(federation: LocalFederation, run: str, expected: RunFolder) -> None:
    """All weights, wherever they are kept, to the bit; and every byte counted alike."""
    server = RunFolder(federation.folder / SERVER / run)
    last = expected.kept
    theirs = expected.state()
    assert sha256(server.state().server) == sha256(theirs.server)
    for site in SITES:
        kept = RunFolder(federation.kept(site, run)).memory(site, last) if theirs.memories.get(site) else {}
        assert sha256(kept) == sha256(theirs.memories.get(site, {}))
        assert not (server.path / "silos").exists()
    assert server.path.joinpath("recipe.toml").read_text() == expected.path.joinpath("recipe.toml").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_a_run_between_sites_is_the_run_of_one_process(federation: LocalFederation, run_both: Runs, name: str) -> None:
    run, expected = run_both(name)
    assert_same(federation, run, expected)
    assert RunFolder(federation.folder / SERVER / run).ledger == expected.ledger


@pytest.mark.parametrize("who", ["silo-1", SERVER])
def test_a_run_whose_worker_is_killed_ends_with_the_same_weights(
    federation: LocalFederation, admin: Admin, who: str, tmp_path: Path
) -> None:
    asked = recipe("digits-huscf", "method.training.steps=12", f"name='killed-{who}'")
    run = admin.submit(asked, [])["run"]
    for status in watch(admin, 0.05):
        if status["round"] == 1:
            worker(federation, who).kill()
            break
    assert ended(admin)["stage"] == "ended", federation.log(SERVER)
    assert_same(federation, run, in_one_process(asked, tmp_path / "one"))


def test_only_the_server_listens_and_only_on_loopback(federation: LocalFederation, admin: Admin) -> None:
    admin.status()
    for party in (SERVER, *SITES):
        listening = [
            connection
            for connection in worker(federation, party).net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
        ports = [(connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port) for connection in listening]
        assert ports == ([(LOOPBACK, federation.port)] if party == SERVER else [])


def test_strangers_are_refused(federation: LocalFederation, admin: Admin, tmp_path: Path) -> None:
    new_kits(f"{LOOPBACK}:{federation.port}", ["silo-0"], tmp_path / "other")
    with pytest.raises(KitError, match="is not the server of this federation"):
        load_kit(tmp_path / "other" / "silo-0", "site").server_fingerprint()
    with socket.create_connection((LOOPBACK, federation.port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        plain.settimeout(5)
        assert not plain.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert admin.status()["sites"]["silo-0"].startswith("connected")


def test_what_the_server_has_is_fetched_whole_and_can_be_measured(
    federation: LocalFederation, admin: Admin, run_both: Runs, tmp_path: Path
) -> None:
    (run, expected), few = run_both("digits-fedavg"), Evaluation(images=20, bootstrap=0)
    out = admin.fetch(run, tmp_path / "fetched")
    stored = federation.folder / SERVER / run
    for path in stored.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            assert (out / path.relative_to(stored)).read_bytes() == path.read_bytes()
    with pytest.raises(RunFolderError, match="whose images are theirs"):
        evaluate(RunFolder(out), few)
    here = evaluate(expected, few)
    assert evaluate(RunFolder(out), few, "recipe")["metrics"] == here["metrics"]


def test_a_killed_supervisor_takes_its_worker_with_it(federation: LocalFederation) -> None:
    child = worker(federation, "silo-2")
    os.kill(federation.processes["silo-2"].pid, signal.SIGKILL)
    assert psutil.wait_procs([child], timeout=10)[0]
    federation.processes["silo-2"].wait()
    federation.start("silo-2")
