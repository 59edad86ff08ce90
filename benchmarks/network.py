"""Runs as jobs of NVIDIA FLARE, over mutual TLS on loopback: the same weights, how fast, how large, how soon."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from harness import bench, parts, rates
from harness.federations import (
    METHODS,
    RECIPES,
    SMALL,
    alone,
    alone_seconds,
    between,
    completed,
    differing,
    kept_memories,
    planned,
    recipe,
    stretched,
    up,
    weights,
)
from harness.simulator import simulate
from manyhands import load_recipe
from manyhands.federation.demo import LocalFederation
from manyhands.federation.job.folder import write_job
from manyhands.federation.kit import KEPT, RUNS, SERVER
from manyhands.runs.recipe import Recipe
from manyhands.runs.run_folder import RunFolder

Measured = tuple[dict[str, float], dict[str, Any]]
BARS = {
    "job_identical": "== 0", "job_rate": ">= 0.5", "job_rate_direct": ">= 0.5", "job_rate_20ms": ">= 0.7",
    "job_u_gan": ">= 0.75", "job_memory": "<= 2.5", "job_memory_8": "<= 2.5", "job_start": "<= 20",
}  # fmt: skip
LARGE_GAN = ("data.size=28", "method.model.width=16", "method.training.batch=32", "method.training.steps=25")
SMALL_NET = ("method.model.widths=[16,32]",)
DDPM = ("method.model.widths=[128,256,256,256]", "method.model.blocks=2", "method.model.groups=32",
        "method.model.attention=[1]")  # fmt: skip
"""The network of DDPM for CIFAR-10, of 35.7 million weights."""
BRIEF = ("method.training.steps=1", "method.training.batch=2", "method.ema=0", "sampling.steps=1")
SPARE_BYTES = 300e6
"""What the server's process may take beside the weights."""
COMPONENTS = "manyhands.federation.job.server_component, manyhands.federation.job.site_component"


def identical(args: argparse.Namespace) -> Measured:
    """How many of the tensors' hashes differ between one process and a job, or FLARE's simulator."""
    differ: dict[str, int] = {}
    names = list(METHODS)[: 1 if args.quick else None]
    with tempfile.TemporaryDirectory() as folder:
        for sites in (2,) if args.quick else (2, 8):
            expected = {name: alone(recipe(name, sites), Path(folder) / f"{name}-{sites}") for name in names}
            with up(sites) as (federation, admin, places):
                for name in names:
                    asked = recipe(name, sites)
                    run, job = admin.submit(asked)
                    completed(federation, admin, job)
                    hashes = between(federation, run, asked.method.rounds, places)
                    differ[f"{name}, {sites} sites"] = differing(hashes, expected[name])
            if sites == 2:
                for name in names:
                    hashes = _simulated(recipe(name, sites), Path(folder) / f"{name}-simulated")
                    differ[f"{name}, simulator"] = differing(hashes, expected[name])
    return {"job_identical": float(sum(differ.values()))}, {"differ": differ}


def _simulated(asked: Recipe, folder: Path) -> dict[str, str]:
    """The weights of a job in FLARE's simulator."""
    folder.mkdir()
    workspace, sites = folder / "workspace", [f"silo-{i}" for i in range(asked.partition.silos)]
    simulate(write_job(asked, folder / "job"), workspace, sites)
    places = {site: RunFolder(workspace / site / KEPT / RUNS / asked.name) for site in sites}
    return weights(RunFolder(workspace / SERVER / KEPT / RUNS / asked.name), kept_memories(places, asked.method.rounds))


def rate(args: argparse.Namespace) -> Measured:
    """A megabyte each way for two sites: gRPC's seconds over a job's, relayed by FLARE's server and on direct lines."""
    count = 20 if args.quick else 200
    figures, shown = {}, {}
    for name in ("job_rate",) if args.quick else ("job_rate", "job_rate_direct"):
        with planned(2) as federation:
            if name == "job_rate_direct":
                rates.direct(federation.kits, [SERVER, *federation.sites])
            with federation, federation.admin() as admin:
                bare = [rates.bare_seconds(federation, count)]
                job, steps = rates.job_seconds(federation, admin, count)
                bare.append(rates.bare_seconds(federation, count))
        figures[name] = statistics.mean(bare) / job
        shown[name] = {"job": job, "bare, before and after": bare, "milliseconds of the job": steps}
    return figures, shown


def rate_20ms(args: argparse.Namespace) -> Measured:
    """The same, relayed, where a message takes 20 ms there and back."""
    count, delay = 10 if args.quick else 100, 0.01
    with stretched(2, delay) as (federation, admin, _):
        bare = [rates.bare_seconds(federation, count, delay)]
        job, steps = rates.job_seconds(federation, admin, count)
        bare.append(rates.bare_seconds(federation, count, delay))
    shown = {"job": job, "bare, before and after": bare, "milliseconds of the job": steps}
    return {"job_rate_20ms": statistics.mean(bare) / job}, {"job_rate_20ms": shown}


def u_gan(args: argparse.Namespace) -> Measured:
    """Mini-batches a second of a GAN that is cut over two sites, against the same in one process."""
    asked = recipe(
        "digits-huscf", 2, *(("method.training.steps=3",) if args.quick else (*LARGE_GAN, "method.rounds=5"))
    )
    with up(2) as (federation, admin, _), tempfile.TemporaryDirectory() as folder:
        one = [alone_seconds(asked, Path(folder) / "before")]
        run, job = admin.submit(asked)
        completed(federation, admin, job)
        between_sites = statistics.median([done.seconds for done in RunFolder(federation.run(run)).rounds][1:])
        one.append(alone_seconds(asked, Path(folder) / "after"))
    steps = asked.method.training.steps  # type: ignore[attr-defined] # this method has it
    shown = {"of a job": steps / between_sites, "in one process, before and after": [steps / each for each in one]}
    return {"job_u_gan": statistics.mean(one) / between_sites}, {"mini-batches a second": shown}


def memory(args: argparse.Namespace) -> Measured:
    """The peak of the server's process of a job, less 300 MB, in models of 35.7 million weights."""
    model = SMALL_NET if args.quick else DDPM
    figures: dict[str, float] = {}
    shown: dict[str, Any] = {}
    for sites in (2,) if args.quick else (2, 8):
        asked = load_recipe(
            RECIPES / "digits-fedavg.toml", [*SMALL, f"partition.silos={sites}", "data.size=32", *model, *BRIEF]
        )
        with up(sites) as (federation, admin, _):
            run, job = admin.submit(asked)
            completed(federation, admin, job)
            folder, relay = RunFolder(federation.run(run)), _peak(federation, SERVER)
            peak, weights_bytes = folder.report["peak_memory"], 4 * int(folder.report["parameters"])
            taken = statistics.median(done.seconds for done in folder.rounds[1:])
        figures["job_memory" if sites == 2 else "job_memory_8"] = (peak - SPARE_BYTES) / weights_bytes
        shown[f"{sites} sites"] = {"peak": peak, "model": weights_bytes, "FLARE's server": relay, "round": taken}
    return figures, {"memory": shown}


def _peak(federation: LocalFederation, party: str) -> int:
    """The most memory that FLARE's own process of a party has taken, which relays what the sites send."""
    parent = max(psutil.Process(federation.processes[party].pid).children(), key=lambda each: each.memory_info().rss)
    lines = Path(f"/proc/{parent.pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def start(_args: argparse.Namespace) -> Measured:
    """The seconds from the submission of a job to the first training of its last site, less those of our imports."""
    asked = recipe("digits-fedavg", 2)
    imports = [_import_seconds()]
    with up(2) as (federation, admin, sites):
        began = time.time()
        run, job = admin.submit(asked)
        completed(federation, admin, job)
        logs = [(federation.kits / site / job / "log.txt").read_text() for site in sites]
        trains = [_logged(log, "sites train from round 1") - began for log in logs]
        gathers = _logged(admin.log(run, SERVER), f"{run}: begins at round 1") - began
    imports.append(_import_seconds())
    shown = {"to the first training": trains, "to the server's readiness": gathers, "imports": imports}
    return {"job_start": max(trains) - statistics.mean(imports)}, {"start": shown}


def _import_seconds() -> float:
    """The seconds in which a new process imports PyTorch and what the components of a job need."""
    code = f"import time; began = time.time(); import torch, {COMPONENTS}; print(time.time() - began)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def _logged(log: str, text: str) -> float:
    """When a line was first logged, in seconds since 1970."""
    line = next(line for line in log.splitlines() if text in line)
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


PARTS = (identical, rate, rate_20ms, u_gan, memory, start)
QUICK = (rate,)
"""The weights of others are compared in the tests, at small size."""


def measure(args: argparse.Namespace) -> bench.Measured:
    """All parts, or those that --only names; one of them at toy size."""
    return parts.measure("network", PARTS, QUICK, BARS, args)


if __name__ == "__main__":
    bench.main("network", measure, BARS, only="")
