"""Kills of a site, of its worker, of the server's, and of everything, at random moments of a run between processes.

Two federations at a time, each of which is killed in its own ways.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness import bench
from harness.federations import alone, between, end, ended, recipe, up, worker_of
from manyhands.federation.demo import LocalFederation
from manyhands.federation.kit import SERVER
from manyhands.federation.run_session import OVER
from manyhands.runs.recipe import Recipe

BARS = {"kills": "== 1"}


def measure(args: argparse.Namespace) -> bench.Measured:
    """The share of kills, at random moments, after which the run ends by itself with the uninterrupted weights."""
    bench.one_thread_each()
    asked = recipe("digits-huscf", 3, "method.training.steps=8", "federation.gather=120", "federation.deadline=120")
    with tempfile.TemporaryDirectory() as folder:
        expected = alone(asked, Path(folder) / "one")
    every, ways = 1 if args.quick else 20, list(KILLED)
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda mine: list(_killed(asked, expected, mine, every)), (ways[::2], ways[1::2]))
        rows = [row for mine in results for row in mine]
    return {"figures": {"kills": sum(bool(row["same"]) for row in rows) / len(rows)}, "kills": rows}


def _killed(asked: Recipe, expected: dict[str, str], ways: list[str], every: int) -> Iterator[dict[str, Any]]:
    """What came of each kill."""
    with up(3) as (federation, admin, sites):
        began = time.perf_counter()
        admin.submit(asked, [])
        ended(admin)
        length = time.perf_counter() - began
        for who in ways:
            chance = random.Random(who)
            for number in range(every):
                moment = chance.uniform(0, length)
                run = admin.submit(asked, [])["run"]
                time.sleep(moment)
                KILLED[who](federation)
                stage = _through(federation)
                same = stage == "ended" and between(federation, run, asked.method.rounds, sites) == expected
                row = {"who": who, "number": number, "after": round(moment, 2), "stage": stage, "same": same}
                print(row, file=sys.stderr, flush=True)
                yield row


def _through(federation: LocalFederation) -> str:
    """How the newest run ended, whoever was gone for a while."""
    with federation.admin() as admin:
        end = time.monotonic() + 180
        while time.monotonic() < end:
            run = admin.status()["run"]
            if run["stage"] in OVER:
                return str(run["stage"])
            time.sleep(0.2)
    return "did not end"


def _kill_worker(party: str) -> Callable[[LocalFederation], None]:
    def kill(federation: LocalFederation) -> None:
        if worker := worker_of(federation, party):
            worker.kill()

    return kill


def _kill_party(*parties: str) -> Callable[[LocalFederation], None]:
    """Both processes, and begun again as an operator's service would."""

    def kill(federation: LocalFederation) -> None:
        named = parties or (SERVER, *federation.sites)
        for party in named:
            end(federation, party)
        for party in named:
            federation.start(party)

    return kill


KILLED = {
    "a site, whole": _kill_party("silo-1"),
    "a site's worker": _kill_worker("silo-1"),
    "the server's worker": _kill_worker(SERVER),
    "everything": _kill_party(),
}


if __name__ == "__main__":
    bench.main("network_kills", measure, BARS)
