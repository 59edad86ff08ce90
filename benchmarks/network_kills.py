"""kill -9 of the processes of a run between sites, at random moments: with our launchers of jobs, and with FLARE's own.

With ours each run has to end by itself, with the weights of a run that nobody harmed. With FLARE's own, a loss has to
end the job by name, and a second job of the same run has to go on to those weights. FLARE's own process of a party is
begun again by the script of its kit, and that script, which gives up after five times in a row, as by a service. Each
way to kill is a case, kept as a file of its own.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from harness import bench, case_files
from manyhands import compose, load_recipe
from manyhands.errors import ManyhandsError
from manyhands.federation.admin import COMPLETED, Admin, is_over
from manyhands.federation.demo import LocalFederation
from manyhands.federation.kit import SERVER
from manyhands.runs.recipe import Recipe
from manyhands.runs.run_folder import RunFolder
from manyhands.tensors import sha256

PROGRAM, SITES, KILLS, PLAIN_KILLS = "network_kills", ("silo-0", "silo-1"), 20, 5
BARS = {"job_kills": "== 1", "job_kills_plain": "== 1"}
RECIPE = bench.ROOT / "recipes" / "digits-huscf.toml"
CHANGES = ("partition.silos=2", "data.limit=160", "evaluation.images=0", "method.rounds=3", "method.model.width=4",
           "method.training.steps=12", "method.training.batch=8", "federation.gather=120",
           "federation.deadline=120")  # fmt: skip
NEEDS_ALL = ("quorum=2", "federation.deadline=45")
"""Without our launchers: a run that may go on without a site would end without it, and not by name."""
HAD_ENDED = "the run has ended"
"""What a second job says whose run had ended when the first one failed, as where FLARE lost a site's last report."""
MODULES = {
    "job": {True: "runner_process", False: "worker_process"},
    "parent": {True: "server_train", False: "client_train"},
}
"""The modules of FLARE's processes, at the server and at a site."""
EVERYTHING = [(what, party) for what in MODULES for party in (SERVER, *SITES)]
WAYS: dict[str, list[tuple[str, str]]] = {
    "a site's job": [("job", "silo-1")],
    "a site's parent": [("parent", "silo-1")],
    "the server's job": [("job", SERVER)],
    "the server's parent": [("parent", SERVER)],
    "everything": EVERYTHING,
}
PLAIN = {f"{way}, FLARE's launchers": victims for way, victims in WAYS.items() if way != "everything"}


def measure(args: argparse.Namespace) -> bench.Measured:
    """The share of kills after which the run had the weights of one that nobody harmed."""
    bench.one_thread_each()
    scale = "quick" if args.quick else "small"
    if args.quick:
        rows = list(_kills("a site's job", WAYS["a site's job"], 1))
        return {"figures": {"job_kills": _share(rows), "job_kills_plain": None}, "kills": rows, "why": "toy size"}
    for case in case_files.asked(args.cases, [*WAYS, *PLAIN]):
        began, every = time.perf_counter(), PLAIN_KILLS if case in PLAIN else KILLS
        rows = list(_kills(case, (WAYS | PLAIN)[case], every))
        record = case_files.of_here({"same": _share(rows), "kills": rows}, time.perf_counter() - began, RECIPE)
        case_files.keep(case_files.FOLDER, PROGRAM, scale, case, 0, record)
    kept = {case: file["figures"] for case, files in _kept(scale).items() for file in files.values()}
    return {
        "figures": {"job_kills": _all(kept, WAYS), "job_kills_plain": _all(kept, PLAIN)},
        "kills": {case: len(figures["kills"]) for case, figures in kept.items()},
        "why": "cases are missing",
    }


def _kept(scale: str) -> dict[str, dict[int, case_files.Case]]:
    return case_files.read(case_files.FOLDER, PROGRAM, scale)


def _all(kept: dict[str, Any], cases: dict[str, Any]) -> float | None:
    """The share over all kills of these cases, or None while one is missing."""
    rows = [row for case in cases for row in kept.get(case, {}).get("kills", ())]
    return _share(rows) if all(case in kept for case in cases) else None


def _share(rows: list[dict[str, Any]]) -> float:
    return sum(bool(row["same"]) for row in rows) / len(rows)


def _kills(case: str, victims: list[tuple[str, str]], every: int) -> Iterator[dict[str, Any]]:
    """What came of each kill."""
    chance, plain = random.Random(case), case in PLAIN
    recipe = load_recipe(RECIPE, [*CHANGES, *(NEEDS_ALL if plain else ())])
    with tempfile.TemporaryDirectory() as folder:
        expected = _alone(recipe, Path(folder) / "one")
        with LocalFederation(Path(folder) / "federation", SITES, launcher=not plain) as federation:
            length = _unharmed(federation, recipe)
            for number in range(every):
                row = _kill(federation, recipe, f"run-{number}", victims, chance.uniform(0, length), plain=plain)
                has_ended = row["stage"] == COMPLETED or (plain and HAD_ENDED in row["why"])
                row["same"] = has_ended and _between(federation, row["run"]) == expected
                print(case, row, "" if row["same"] else _kept_logs(federation), file=sys.stderr, flush=True)
                yield row


def _kept_logs(federation: LocalFederation) -> Path:
    """A folder with the logs of all parties and their jobs, to see what went wrong."""
    kept = Path(tempfile.mkdtemp(prefix="kills-"))
    shutil.copytree(federation.folder, kept, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    return kept


def _unharmed(federation: LocalFederation, recipe: Recipe) -> float:
    """The seconds from the moment at which the job has a process to the end of the run."""
    with federation.admin() as admin:
        _, job = admin.submit(recipe, run="unharmed")
    _find(federation, job, EVERYTHING[:3])
    began = time.perf_counter()
    _end(federation, job)
    return time.perf_counter() - began


def _kill(
    federation: LocalFederation, recipe: Recipe, run: str, victims: list[tuple[str, str]], after: float, *, plain: bool
) -> dict[str, Any]:
    """Kill some processes so many seconds after the job has begun, and see how its run ends."""
    _gather(federation)
    with federation.admin() as admin:
        _, job = admin.submit(recipe, run=run)
    _find(federation, job, EVERYTHING[:3])
    time.sleep(after)
    closed = len(RunFolder(federation.run(run)).rounds)
    for process in _find(federation, job, victims):
        process.kill()
    began = time.perf_counter()
    state = _end(federation, job)
    row = {"run": run, "after": round(after, 2), "closed": closed, "stage": state["stage"], "why": state["why"]}
    if plain and state["stage"] != COMPLETED:
        row["lost"] = f"{state['stage']}: {state['why']}"
        with federation.admin() as admin:
            _, job = admin.submit(recipe, run=run)
        state = _end(federation, job)
        row |= {"stage": state["stage"], "why": state["why"]}
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def _find(federation: LocalFederation, job: str, victims: list[tuple[str, str]]) -> list[psutil.Process]:
    """The processes of a job, or of FLARE itself; those of a job are waited for, unless it is over."""
    end = time.monotonic() + 60
    while True:
        found = [process for process in psutil.process_iter(["cmdline"]) if _is_one(process, federation, job, victims)]
        if len(found) >= len(victims) or time.monotonic() > end or _is_over(federation, job):
            return found
        time.sleep(0.1)


def _is_one(process: psutil.Process, federation: LocalFederation, job: str, victims: list[tuple[str, str]]) -> bool:
    words = process.info["cmdline"] or [""]
    line = " ".join(words)
    return "python" in words[0] and any(
        f".{MODULES[what][party == SERVER]}" in line
        and f"{federation.kits / party}" in line
        and (what == "parent" or job in line)
        for what, party in victims
    )


def _serve(federation: LocalFederation) -> None:
    """Start what has ended, as a service does."""
    for party, process in list(federation.processes.items()):
        if process.poll() is not None:
            federation.start(party)


def _gather(federation: LocalFederation) -> None:
    """Wait until the server has heard of each site."""
    asked, end, heard = time.time(), time.monotonic() + 120, dict.fromkeys(SITES, 0.0)
    while min(heard.get(site, 0.0) for site in SITES) < asked and time.monotonic() < end:
        _serve(federation)
        heard = _ask(federation, Admin.sites, unknown={})
        time.sleep(0.5)


def _is_over(federation: LocalFederation, job: str) -> bool:
    return bool(_ask(federation, lambda admin: is_over(admin.job(job)), unknown=False))


def _end(federation: LocalFederation, job: str) -> dict[str, Any]:
    """How a job ended, whoever was gone for a while."""
    end, state = time.monotonic() + 300, {"stage": "did not end", "why": ""}
    while time.monotonic() < end:
        _serve(federation)
        state = _ask(federation, lambda admin: admin.job(job), unknown=state)
        if is_over(state) and state["stage"] != "did not end":
            break
        time.sleep(0.5)
    return state


def _ask(federation: LocalFederation, question: Callable[[Admin], Any], unknown: Any) -> Any:
    """What the server answers, or what was known before while there is none."""
    try:
        with Admin(federation.kits / "admin", seconds=2.0) as admin:
            return question(admin)
    except ManyhandsError:
        return unknown


def _alone(recipe: Recipe, folder: Path) -> dict[str, str]:
    """The hashes of what the server and each site have at the end of a run in one process."""
    for _ in compose(recipe, folder):
        pass
    state = RunFolder(folder).state()
    return {"": sha256(state.server)} | {name: sha256(memory) for name, memory in state.memories.items() if memory}


def _between(federation: LocalFederation, run: str) -> dict[str, str]:
    """The same of a run between sites."""
    folder = RunFolder(federation.run(run))
    memories = {site: RunFolder(federation.kept(site, run)).memory(site, folder.kept) for site in SITES}
    return {"": sha256(folder.state().server)} | {site: sha256(memory) for site, memory in memories.items() if memory}


if __name__ == "__main__":
    bench.main(PROGRAM, measure, BARS, cases="")
