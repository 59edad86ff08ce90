"""A provisioned federation of FLARE, with mutual TLS between its processes: the runs are those of one process."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare")

import psutil
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message as FlareMessage

from manyhands.errors import KitError, RunFolderError
from manyhands.evaluation.spec import Evaluation
from manyhands.federation.admin import Admin
from manyhands.federation.demo import LOOPBACK, LocalFederation, watch
from manyhands.federation.kit import ADMIN, SERVER
from manyhands.federation.provision import new_kits
from manyhands.links.flare_cell import CHANNEL, TOPIC
from manyhands.runs.compose import compose
from manyhands.runs.finished import evaluate
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.shipped import recipe_path
from manyhands.tensors import sha256

pytestmark = pytest.mark.slow

SITES = ["silo-0", "silo-1"]
MEMBER = "ann@a.org"
SMALL = ["partition.silos=2", "data.limit=120", "evaluation.images=0", "method.rounds=3", "method.training.steps=2"]
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
    folder = tmp_path_factory.mktemp("federation")
    with LocalFederation(folder, SITES, users=[f"{MEMBER}:member"]) as started:
        yield started


@pytest.fixture(scope="module")
def admin(federation: LocalFederation) -> Iterator[Admin]:
    with federation.admin() as connected:
        yield connected


@pytest.fixture(scope="module")
def runs(federation: LocalFederation, admin: Admin, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Each method once between the sites, all of them side by side, and once in one process: the latter's folders."""
    jobs = {name: admin.submit(recipe(name))[1] for name in METHODS}
    for job in jobs.values():
        assert ended(admin, job)["stage"] == "FINISHED:COMPLETED", federation.log(SERVER)
    return {name: in_one_process(recipe(name), tmp_path_factory.mktemp(name) / "one") for name in METHODS}


def ended(admin: Admin, job: str) -> dict[str, Any]:
    *_, last = watch(admin, job, 0.2)
    return last


def until(is_so: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def processes(federation: LocalFederation) -> list[psutil.Process]:
    """FLARE's processes of all parties, and those of their jobs."""
    parents = [psutil.Process(process.pid) for process in federation.processes.values()]
    return [child for parent in parents for child in parent.children(recursive=True)]


def job_process(federation: LocalFederation, party: str, job: str) -> psutil.Process:
    kit = str(federation.kits / party)
    matching = [
        process
        for process in processes(federation)
        if job in (words := process.cmdline()) and any(kit in word for word in words)
    ]
    return matching[-1]


def assert_same(federation: LocalFederation, run: str, expected: RunFolder) -> None:
    """All weights, wherever they are kept, to the bit; and every byte counted alike."""
    server, theirs = RunFolder(federation.run(run)), expected.state()
    assert sha256(server.state().server) == sha256(theirs.server)
    for site in SITES:
        kept = RunFolder(federation.kept(site, run)).memory(site, expected.kept) if theirs.memories.get(site) else {}
        assert sha256(kept) == sha256(theirs.memories.get(site, {}))
        assert not (server.path / "silos").exists()
    assert server.path.joinpath("recipe.toml").read_text() == expected.path.joinpath("recipe.toml").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_runs_side_by_side_are_those_of_one_process(
    federation: LocalFederation, runs: dict[str, RunFolder], name: str
) -> None:
    assert_same(federation, name, runs[name])
    assert RunFolder(federation.run(name)).ledger == runs[name].ledger


def test_a_run_whose_processes_are_killed_ends_with_the_same_weights(
    federation: LocalFederation, admin: Admin, tmp_path: Path
) -> None:
    asked = recipe("digits-huscf", "method.training.steps=12", "name='killed'")
    job, folder = admin.submit(asked)[1], RunFolder(federation.run("killed"))
    for closed, party in enumerate(("silo-1", SERVER), start=1):
        until(lambda closed=closed: len(folder.rounds) >= closed)  # type: ignore[misc]
        job_process(federation, party, job).kill()
    assert ended(admin, job)["stage"] == "FINISHED:COMPLETED", federation.log(SERVER)
    assert_same(federation, "killed", in_one_process(asked, tmp_path / "one"))


def test_every_process_listens_on_loopback_alone(federation: LocalFederation, admin: Admin) -> None:
    assert set(admin.sites()) == set(SITES)
    connections = [each for process in processes(federation) for each in process.net_connections()]
    listening = {each.laddr.ip.removeprefix("::ffff:") for each in connections if each.status == psutil.CONN_LISTEN}
    assert listening == {LOOPBACK}


def test_strangers_are_refused(federation: LocalFederation, admin: Admin, tmp_path: Path) -> None:
    new_kits(f"{LOOPBACK}:{federation.port}", ["silo-0"], tmp_path / "other")
    with pytest.raises(KitError, match="no server answers, or it does not know this kit"):
        Admin(tmp_path / "other" / ADMIN, seconds=1.0)
    with socket.create_connection((LOOPBACK, federation.port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        plain.settimeout(5)
        assert not plain.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert set(admin.sites()) == set(SITES)


def test_nobody_speaks_in_the_name_of_a_site(federation: LocalFederation) -> None:
    """FLARE alone lets a user send under any origin, for it looks for users among its sites."""
    with Admin(federation.kits / MEMBER) as member:
        cell = member._session.api.cell.core_cell
        cell.add_outgoing_request_filter("*", "*", lambda sent: sent.set_header(MessageHeaderKey.ORIGIN, "silo-1"))
        cell.fire_and_forget(CHANNEL, TOPIC, "server", FlareMessage({}, b""))
        until(lambda: "sent a message in the name of silo-1" in federation.log(SERVER), 20.0)


def test_who_may_not_submit_is_refused(federation: LocalFederation) -> None:
    with Admin(federation.kits / MEMBER) as member:
        assert set(member.sites()) == set(SITES)
        with pytest.raises(KitError, match=f"{MEMBER}: may not do this"):
            member.submit(recipe("digits-fedavg"))


def test_a_run_that_has_ended_is_not_begun_again(
    federation: LocalFederation, admin: Admin, runs: dict[str, RunFolder]
) -> None:
    again = ended(admin, admin.submit(recipe("digits-fedavg"), run="digits-fedavg")[1])
    assert again["stage"] == "FINISHED:EXECUTION_EXCEPTION"
    assert "digits-fedavg: the run has ended; submit it under another name with --run" in again["why"]
    assert_same(federation, "digits-fedavg", runs["digits-fedavg"])


def test_what_the_server_has_is_fetched_whole_and_can_be_measured(
    federation: LocalFederation, admin: Admin, runs: dict[str, RunFolder], tmp_path: Path
) -> None:
    few, stored = Evaluation(images=20, bootstrap=0), federation.run("digits-fedavg")
    out = admin.fetch("digits-fedavg", tmp_path / "fetched")
    for path in stored.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            assert (out / path.relative_to(stored)).read_bytes() == path.read_bytes()
    with pytest.raises(RunFolderError, match="whose images are theirs"):
        evaluate(RunFolder(out), few)
    here = evaluate(runs["digits-fedavg"], few)
    assert evaluate(RunFolder(out), few, "recipe")["metrics"] == here["metrics"]
