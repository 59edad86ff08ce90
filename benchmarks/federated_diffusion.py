"""What federated diffusion comes to: parity with pooled data, proximal terms, codecs, many silos.

Every case is a ``manyhands run`` of a shipped recipe with a few ``--set``, in a folder of its own under ``--work``. One
that has ended is not run again, and one that was cut off goes on, so that all can be done in pieces: ``--budget`` says
after how many seconds no further run is begun. Of each that has ended a file is kept in ``benchmarks/results/cases``,
and what is claimed is of all files that lie there (``claims.py``). ``--cases "vanilla;central" --seeds 3`` does just
these.
What the recipes say was chosen on seed 0; figures are of other seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from harness import bench, case_files, claims
from harness.fork_server import printed
from manyhands import DiffusionGenerator, Evaluator
from manyhands.runs.compose import silos_of
from manyhands.runs.recipe_file import parse_recipe
from manyhands.runs.run_folder import RunFolder

BARS = {"codec_seconds": "<= 1.5", "codec_copies": "<= 2"}
RECIPES = {"small": "mnist16-fedavg", "paper": "fashion-fedavg", "quick": "digits-fedavg"}
DATA = {"small": "mnist", "paper": "fashion-mnist", "quick": "nothing"}
QUICK = ["vanilla", "updates, 4 bits"]


def measure(args: argparse.Namespace) -> bench.Measured:
    """The codec, and what the files of all cases come to; with ``--cases`` those cases alone."""
    scale, end = "quick" if args.quick else args.scale, time.monotonic() + args.budget
    claimed = quality(args, scale, end)
    if args.cases:
        return {"figures": {}, "claims": claimed}
    codec = codec_cases("16,32", fresh=False) if args.quick else codec_cases("128,256,256,256")
    return {"figures": codec_figures(codec), "claims": claimed, "codec": codec}


def quality(args: argparse.Namespace, scale: str, end: float) -> dict[str, Any]:
    """Train what has not ended and has its data here, keep the files, and say what all files come to."""
    seeds = [0] if args.quick else [int(seed) for seed in args.seeds.split(",")]
    every = claims.federated_cases(scale)
    asked = QUICK if args.quick else case_files.asked(args.cases, every)
    work = Path(tempfile.mkdtemp() if args.quick else args.work) / scale
    root = work if args.quick else case_files.FOLDER
    toy = [*bench.TOY, "sampling.steps=5", "method.rounds=2", "method.training.steps=3"] if args.quick else []
    runs: list[bench.Run] = [
        (RECIPES[scale], work / place(name, seed), Path(args.data), [f"seed={seed}", *every[name], *toy])
        for seed, name in product(seeds, asked)
    ]
    if args.quick or (Path(args.data) / DATA[scale]).is_dir():
        bench.run_all(runs, args.parallel, args.budget)
    for name, seed in product(asked, seeds):
        at = RunFolder(work / place(name, seed))
        if not at.is_ended:
            continue
        record = case_files.of_run(at.path, of(at.report), at.report)
        case_files.keep(root, "federated_diffusion", scale, name, seed, record)
        if name == "skewed local" and (fid := alone_fid(at, end)) is not None:
            own = record | {"figures": record["figures"] | {"fid": fid}}
            case_files.keep(root, "federated_diffusion", scale, claims.OWN, seed, own)
    return claims.rows("federated_diffusion", scale, root)


def place(name: str, seed: int) -> str:
    """The folder of a run."""
    return "-".join(name.replace(",", "").split()) + f"-{seed}"


def of(report: dict[str, Any]) -> dict[str, Any]:
    """What a run came to, and what it cost."""
    return {
        "fid": round(report["metrics"]["fid"], 4),
        "floor": round(report["floor"]["fid"], 4),
        "label_match": round(report["metrics"]["label_match"], 4),
        "images_seen": report["images_seen"],
        "bytes": report["bytes_up"] + report["bytes_down"],
    }


def alone_fid(run: RunFolder, end: float) -> float | None:
    """The mean FID of the silos' own generators, each asked for all that is held out, whoever holds it; kept beside."""
    kept = run.path / "alone.json"
    if not kept.exists() and time.monotonic() > end:
        return None
    if not kept.exists():
        recipe = parse_recipe(run.recipe)
        silos, _ = silos_of(recipe)
        evaluator = Evaluator(recipe.evaluation, silos)
        own = [DiffusionGenerator.from_pretrained(run.silo(silo.name) / "model") for silo in silos]
        fids = [evaluator.quick(dict.fromkeys(evaluator.silos, each), recipe.sampling)["fid"] for each in own]
        kept.write_text(json.dumps(fids))
    return round(float(np.mean(json.loads(kept.read_text()))), 4)


def codec_cases(widths: str, *, fresh: bool = True) -> dict[str, dict[str, float]]:
    """Seconds on one core, and peak memory in updates, of an update at 8 bits, by chance and with feedback."""
    costs = {}
    for what in ("encode", "decode"):
        seconds, copies, weights = map(float, printed("harness.codec_child", what, widths, fresh=fresh).split())
        costs[what] = {"seconds": round(seconds, 3), "copies": round(copies, 2), "weights": int(weights)}
    return costs


def codec_figures(codec: dict[str, dict[str, float]]) -> dict[str, float]:
    """Both together."""
    each = codec.values()
    return {
        "codec_seconds": sum(one["seconds"] for one in each),
        "codec_copies": max(one["copies"] for one in each),
    }


if __name__ == "__main__":
    options = {"scale": "small", "seeds": "1,2,3", "cases": "", "work": "runs/federated_diffusion", "data": "data"}
    bench.main("federated_diffusion", measure, BARS, **options, budget=1e9, parallel=2)
