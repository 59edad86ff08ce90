"""What federated diffusion comes to: parity with pooled data, proximal terms, codecs, many silos.

Every case is a ``manyhands run`` of a shipped recipe with a few ``--set``, in a folder of its own under ``--work``. One
that has ended is not run again, and one that was cut off goes on, so that all can be done in pieces: ``--budget`` says
after how many seconds no further run is begun. What the recipes say was chosen on seed 0; figures are of other seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import bench
import numpy as np

from manyhands import Generator, Judge
from manyhands.experiment import silos_of
from manyhands.journal import RunFolder
from manyhands.recipe import parse_recipe

BARS = {
    "vanilla_iid": "<= 1.1", "beats_local": ">= 1.5", "beats_local_together": ">= 1.5", "prox": "<= 1",
    "quant8_bytes": ">= 3.9", "quant8_fid": "<= 1.05", "quant4_bytes": ">= 7.5", "quant4_fid": "<= 1.1",
    "stretch_bytes": ">= 20", "stretch_fid": "<= 1.15", "codec_seconds": "<= 1.5", "codec_copies": "<= 2",
}  # fmt: skip
RECIPES = {"small": "mnist16-fedavg", "paper": "fashion-fedavg", "quick": "digits-fedavg"}
DATA = {"small": "mnist", "paper": "fashion-mnist", "quick": "nothing"}
SKEWED = 'partition={kind="dirichlet",silos=10,alpha=0.1,minimum=10}'
LONG = {"small": (6, "steps=50"), "paper": (12, "epochs=5"), "quick": (2, "steps=4")}
"""Rounds, and what each is, where silos train long between them: as much in all."""
ALONE = {"small": ("method.training.learning_rate=2e-3",), "paper": (), "quick": ()}
"""What is better for those who average nothing: on seed 0, the joined baseline came to FID 2.2 at a rate of 2e-3 and
to 2.8 at 6e-3, ten silos to 2.4 at 6e-3 and to 3.2 at 4e-3."""
PULLS = [("coupled", 0.1), ("coupled", 1.0), ("decoupled", 10.0)]
QUICK = ["vanilla", "updates, 4 bits"]
CODECS = {
    "weights, 8 bits": 'kind="weights",bits=8',
    "weights, 4 bits": 'kind="weights",bits=4',
    "updates, 8 bits": 'kind="updates",bits=8,entropy=true',
    "updates, 4 bits": 'kind="updates",bits=4,entropy=true',
    "updates, 2 bits": 'kind="updates",bits=2,reach=3,entropy=true',
    "updates, 2 bits near": 'kind="updates",bits=2,reach=2.5,entropy=true',
}


def cases(scale: str) -> dict[str, tuple[str, ...]]:
    """What is told to each case beside its recipe."""
    rounds, length = LONG[scale]
    long = (SKEWED, f"method.rounds={rounds}", f"method.training.{length}", "method.ema=0")
    pulls = {
        f"skewed long, {mode} mu {mu:g}": (*long, f"method.proximal={mu}", f"method.proximal_mode={mode}")
        for mode, mu in PULLS
    }
    codecs = {name: (f"method.up={{{codec}}}", f"method.down={{{codec}}}") for name, codec in CODECS.items()}
    return {
        "vanilla": (),
        "central-joined": ("method.kind=central", "method.joined=true", *ALONE[scale]),
        "central": ("method.kind=central", *ALONE[scale]),
        **codecs,
        "skewed": (SKEWED,),
        "skewed local": (SKEWED, "method.kind=local", *ALONE[scale]),
        "skewed long": long,
        **pulls,
    }


def measure(told: argparse.Namespace) -> bench.Measured:
    """Mean FIDs over the seeds, against each other; bytes both ways as counted on the wire, against float32."""
    scale, end = "quick" if told.quick else told.scale, time.monotonic() + told.budget
    seeds = [0] if told.quick else [int(seed) for seed in told.seeds.split(",")]
    asked = QUICK if told.quick else [name for name in told.only.split(";") if name] or list(cases(scale))
    work = Path(tempfile.mkdtemp() if told.quick else told.work) / scale
    toy = ["method.rounds=2", "evaluation.images=60"] if told.quick else []
    runs: list[bench.Run] = [
        (RECIPES[scale], work / place(name, seed), Path(told.data), [f"seed={seed}", *cases(scale)[name], *toy])
        for seed, name in product(seeds, asked)
    ]
    if told.quick or (Path(told.data) / DATA[scale]).is_dir():
        bench.run_all(runs, told.parallel, told.budget)
    found = {name: {seed: RunFolder(work / place(name, seed)) for seed in seeds} for name in cases(scale)}
    ended = {name: {seed: at.report for seed, at in each.items() if at.ended} for name, each in found.items()}
    table = {name: row(reports) for name, reports in ended.items() if reports}
    alone = {seed: alone_fid(found["skewed local"][seed], end) for seed in ended["skewed local"]}
    if alone := {seed: fid for seed, fid in alone.items() if fid is not None}:
        fids = {"fids": alone, "fid": round(float(np.mean(list(alone.values()))), 4), "deviation": None}
        table["skewed local, a silo's own"] = table["skewed local"] | fids
    codec = codec_cases("16,32" if told.quick else "128,256,256,256")
    return {
        "figures": dict.fromkeys(BARS) | ratios(table) | codec_figures(codec),
        "cases": table,
        "codec": codec,
        "why": f"a figure is of the seeds for which both its cases have ended; they need {DATA[scale]} in --data",
        "seeds": seeds,
    }


def place(name: str, seed: int) -> str:
    """The folder of a run."""
    return "-".join(name.replace(",", "").split()) + f"-{seed}"


def row(reports: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What the runs of a case came to: FID by mean and deviation over seeds, and what it cost."""
    by_seed = {seed: report["metrics"]["fid"] for seed, report in reports.items()}
    fids, first = list(by_seed.values()), next(iter(reports.values()))
    return {
        "fids": {seed: round(fid, 4) for seed, fid in by_seed.items()},
        "fid": round(float(np.mean(fids)), 4),
        "deviation": round(float(np.std(fids, ddof=1)), 4) if len(fids) > 1 else None,
        "floor": round(first["floor"]["fid"], 4),
        "label_match": round(float(np.mean([report["metrics"]["label_match"] for report in reports.values()])), 4),
        "bytes": first["bytes_up"] + first["bytes_down"],
        "seconds": round(float(np.mean([report["seconds"] for report in reports.values()])), 1),
    }


def alone_fid(run: RunFolder, end: float) -> float | None:
    """The mean FID of the silos' own generators, each asked for all that is held out, whoever holds it; kept beside."""
    kept = run.path / "alone.json"
    if not kept.exists() and time.monotonic() > end:
        return None
    if not kept.exists():
        recipe = parse_recipe(run.recipe)
        silos, _ = silos_of(recipe)
        judge = Judge(recipe.evaluation, silos)
        own = [Generator.from_pretrained(run.silo(silo.name) / "model") for silo in silos]
        fids = [judge.quick(dict.fromkeys(judge.silos, each), recipe.sampling)["fid"] for each in own]
        kept.write_text(json.dumps(fids))
    return round(float(np.mean(json.loads(kept.read_text()))), 4)


def ratios(table: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The figures, as far as their cases have been run."""

    def of(name: str, other: str) -> float | None:
        one, two = (table[case]["fids"] if case in table else {} for case in (name, other))
        common = one.keys() & two.keys()
        return sum(one[seed] for seed in common) / sum(two[seed] for seed in common) if common else None

    def fewer(name: str) -> float | None:
        return table["vanilla"]["bytes"] / table[name]["bytes"] if {name, "vanilla"} <= table.keys() else None

    pulled = [ratio for name in table if "mu" in name and (ratio := of(name, "skewed long")) is not None]
    found = {
        "vanilla_iid": of("vanilla", "central-joined"),
        "beats_local": of("skewed local, a silo's own", "skewed"),
        "beats_local_together": of("skewed local", "skewed"),
        "prox": min(pulled, default=None),
    }
    for id_, name in {
        "quant8": "updates, 8 bits",
        "quant4": "updates, 4 bits",
        "stretch": "updates, 2 bits near",
    }.items():
        found |= {f"{id_}_bytes": fewer(name), f"{id_}_fid": of(name, "vanilla")}
    return {name: value for name, value in found.items() if value is not None}


def codec_cases(widths: str) -> dict[str, dict[str, float]]:
    """Seconds on one core, and peak memory in updates, of an update at 8 bits, by chance and with feedback."""
    found = {}
    for what in ("encode", "decode"):
        child = [sys.executable, str(bench.ROOT / "benchmarks" / "codec_child.py"), what, widths]
        said = subprocess.run(child, capture_output=True, text=True, check=True)
        seconds, copies, weights = map(float, said.stdout.split())
        found[what] = {"seconds": round(seconds, 3), "copies": round(copies, 2), "weights": int(weights)}
    return found


def codec_figures(codec: dict[str, dict[str, float]]) -> dict[str, float]:
    """Both together."""
    each = codec.values()
    return {
        "codec_seconds": sum(one["seconds"] for one in each),
        "codec_copies": max(one["copies"] for one in each),
    }


if __name__ == "__main__":
    options = {"scale": "small", "seeds": "1,2,3", "only": "", "work": "runs/federated_diffusion", "data": "data"}
    bench.main("federated_diffusion", measure, BARS, **options, budget=1e9, parallel=2)
