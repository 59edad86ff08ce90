"""Kill -9 at random moments, resume, and compare the final weights with those of a run that nobody disturbed."""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import tempfile
import time
from pathlib import Path

from harness import bench
from harness.fork_server import context

BARS = {"kill_resume": "== 1"}
WEIGHTS = Path("model/unet/diffusion_pytorch_model.safetensors")

RECIPE = {
    "name": "killed",
    "device": "cpu",
    "data": {"source": "digits", "size": 8, "limit": 200},
    "partition": {"kind": "dirichlet", "alpha": 1.0, "silos": 4},
    "method": {
        "kind": "fedavg",
        "rounds": 6,
        "ema": 0.8,
        "participants": 3,
        "keep_optimiser": True,  # so that silos have a state of their own to lose
        "model": {"widths": [8, 16]},
        "training": {"batch": 8, "steps": 3, "learning_rate": 1e-3},
    },
    "sampling": {"steps": 2},
    "evaluation": {"images": 60},
}


def measure(args: argparse.Namespace) -> bench.Measured:
    """The share of killed and resumed runs that end in the very same weights."""
    times = 3 if args.quick else args.times
    same, moments = kill_and_resume(times, seed=0)
    return {
        "figures": {"kill_resume": same / times},
        "cases": {"times": times, "same": same, "rounds closed before the kill": moments},
        "seeds": [0],
    }


def kill_and_resume(times: int, seed: int) -> tuple[int, list[int]]:
    """How many of the runs ended in the weights of the undisturbed one, and how far each was when killed."""
    rng, same, moments = random.Random(seed), 0, []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        assert ended(root / "first")  # it starts the fork server, which takes seconds
        began = time.perf_counter()
        assert ended(root / "whole")
        length, expected = time.perf_counter() - began, digest(root / "whole")
        for i in range(times):
            killed = root / f"killed-{i}"
            process = context().Process(target=train, args=(killed,))
            process.start()
            process.join(length * (i + rng.random()) / times)  # at random in each portion of the time that it takes
            process.kill()
            process.join()
            journal = killed / "journal.jsonl"
            moments.append(len(journal.read_text().splitlines()) if journal.exists() else 0)
            same += ended(killed) and digest(killed) == expected
            shutil.rmtree(killed)
    return same, moments


def ended(folder: Path) -> bool:
    """Run or go on in a process of its own; whether it ended well."""
    process = context().Process(target=train, args=(folder,))
    process.start()
    process.join()
    return process.exitcode == 0


def train(folder: Path) -> None:
    """The victim."""
    import torch

    from manyhands import compose
    from manyhands.runs.recipe_file import parse_recipe

    torch.set_num_threads(1)
    for _ in compose(parse_recipe(RECIPE), folder, resume=True):
        pass


def digest(folder: Path) -> str:
    """SHA-256 of the exported weights."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


if __name__ == "__main__":
    bench.main("kill", measure, BARS, times=50)
