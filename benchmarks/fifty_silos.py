"""Whether fifty silos, ten of them a round, take the memory of ten: MNIST dealt by who wrote it."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import bench

BARS = {"fifty_silos": "<= 1.1"}


def measure(told: argparse.Namespace) -> bench.Measured:
    """Peak memory of 100 rounds of 50 silos, 10 taking part in each, against that of 10 silos that all take part."""
    data = Path(told.data).resolve()
    if not told.quick and not all((data / name).is_dir() for name in ("mnist", "qmnist-labels")):
        return {"figures": {"fifty_silos": None}, "why": f"{told.data} has no folders mnist and qmnist-labels"}
    counts = {"50 silos": (50, 3 if told.quick else 100), "10 silos": (10, 3 if told.quick else 20)}
    found = {name: ended(silos, rounds, data, toy=told.quick) for name, (silos, rounds) in counts.items()}
    return {
        "figures": {"fifty_silos": found["50 silos"]["peak_memory"] / found["10 silos"]["peak_memory"]},
        "cases": {
            name: {"rounds": report["rounds"], "peak MiB": round(report["peak_memory"] / 2**20, 1)}
            | {"seconds": round(report["seconds"], 1), "loss": report["metrics"]["loss"]}
            for name, report in found.items()
        },
        "seeds": [0],
    }


def ended(silos: int, rounds: int, data: Path, *, toy: bool) -> dict[str, Any]:
    """The report of a run in a process of its own."""
    recipe = "digits-fedavg" if toy else "mnist16-by-writer"
    sets = [f"partition.silos={silos}", f"method.rounds={rounds}", "method.participants=10", "evaluation.images=0"]
    with tempfile.TemporaryDirectory() as folder:
        return bench.run_recipe(recipe, Path(folder) / "run", data, sets)


if __name__ == "__main__":
    bench.main("fifty_silos", measure, BARS, data="data")
