"""Whether fifty silos, ten of them a round, take the memory of ten: MNIST dealt by who wrote it."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from harness import bench, case_files, claims

COUNTS = {"50 silos": (50, 100), "10 silos": (10, 20)}
"""How many silos, and how many rounds."""


def measure(args: argparse.Namespace) -> bench.Measured:
    """Peak memory of 100 rounds of 50 silos, 10 taking part in each, against that of 10 silos that all take part."""
    data = Path(args.data).resolve()
    root, scale = (Path(tempfile.mkdtemp()), "quick") if args.quick else (case_files.FOLDER, "small")
    asked = case_files.asked(args.cases, COUNTS)
    if args.quick or all((data / name).is_dir() for name in ("mnist", "qmnist-labels")):
        for name in asked:
            silos, rounds = COUNTS[name]
            record = ended(silos, 3 if args.quick else rounds, data, toy=args.quick)
            case_files.keep(root, "fifty_silos", scale, name, 0, record)
    return {"figures": {}, "claims": claims.rows("fifty_silos", scale, root)}


def ended(silos: int, rounds: int, data: Path, *, toy: bool) -> case_files.Case:
    """What a run in a process of its own came to."""
    recipe = "digits-fedavg" if toy else "mnist16-by-writer"
    sets = [f"partition.silos={silos}", f"method.rounds={rounds}", "method.participants=10", "evaluation.images=0"]
    sets += ["method.training.steps=2"] * toy
    with tempfile.TemporaryDirectory() as folder:
        report = bench.run_recipe(recipe, Path(folder) / "run", data, sets)
        figures = {"peak_memory": report["peak_memory"], "rounds": report["rounds"], "loss": report["metrics"]["loss"]}
        return case_files.of_run(Path(folder) / "run", figures, report)


if __name__ == "__main__":
    bench.main("fifty_silos", measure, {}, data="data", cases="")
