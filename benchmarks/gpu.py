"""Two recipes at a size that needs a GPU: images a second against a bare loop of PyTorch, memory, and what comes out.

It goes on where it was cut off: ``--work`` keeps its runs. No case begins after ``--budget`` seconds.
Without a GPU it measures nothing, but for ``--quick``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from harness import bench
from manyhands import FedAvg
from manyhands.runs.finished import held_silos
from manyhands.runs.run_folder import RunFolder
from manyhands.silos.device import chosen_device

BARS = {"gpu_rate_cells": ">= 0.8", "gpu_rate_fashion": ">= 0.8"}
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "cells": ("cells-fedavg", (
        "data.size=64", "method.model.widths=[64,128,256]", "method.rounds=40",
        "method.training={batch=64,steps=30,flip=true,learning_rate=1e-3,learning_rate_end=0.05}",
    )),
    "fashion": ("fashion-fedavg", (
        "method.rounds=15", "method.training={batch=128,steps=40,learning_rate=1e-3,learning_rate_end=0.05}",
    )),
}  # fmt: skip
TOY = {"cells": ("digits-fedavg", (*bench.TOY, "method.rounds=3", "method.training.steps=2", "sampling.steps=4"))}
"""What --quick runs, on a CPU."""
WARM_UP = 5
"""Steps of the bare loop that are not timed, as the first round of a run is not."""


def measure(args: argparse.Namespace) -> bench.Measured:
    """Images a second of a run, its first round apart, over those of a bare loop with the same network and batch."""
    device = torch.device(chosen_device("auto"))
    if device.type != "cuda" and not args.quick:
        return {"figures": dict.fromkeys(BARS), "cases": {}, "why": "there is no GPU here"}
    work, end = Path(tempfile.mkdtemp() if args.quick else args.work), time.monotonic() + args.budget
    ran = {}
    for case, (recipe, changes) in (TOY if args.quick else CASES).items():
        if time.monotonic() < end:
            bench.run_recipe(recipe, work / case, Path(args.data), [*changes, "repeatable=false"])
            ran[case] = _of(work / case, device)
            print(case, json.dumps(ran[case]), file=sys.stderr, flush=True)
    figures = {f"gpu_rate_{case}": ran[case]["ratio"] if case in ran else None for case in CASES}
    return {"figures": figures, "cases": ran, "seeds": [0], "device": _name(device)}


def _of(folder: Path, device: torch.device) -> dict[str, Any]:
    run = RunFolder(folder)
    timed = run.rounds[1:]
    ours = sum(each.images_seen for each in timed) / sum(each.seconds for each in timed)
    bare, report = _bare_rate(run, device, steps=20 if device.type == "cpu" else 200), run.report
    return {
        "images/s": round(ours, 1),
        "bare images/s": round(bare, 1),
        "ratio": round(ours / bare, 3),
        "peak memory, GB": round(report["peak_memory"] / 1e9, 2),
        "weights": report["parameters"],
        "images seen": report["images_seen"],
        "fid": report["metrics"]["fid"],
        "floor": report["floor"]["fid"],
        "label_match": report["metrics"]["label_match"],
        "seconds": report["seconds"],
    }


def _bare_rate(run: RunFolder, device: torch.device, steps: int) -> float:
    """Images a second of the plainest loop: all images on the device, one network, one optimiser, noise by DDPM."""
    recipe, silos = held_silos(run)
    assert isinstance(recipe.method, FedAvg)
    training, images = recipe.method.training, silos[0].images.to(device)
    network = recipe.method.model.build(seed=0).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    alphas = torch.linspace(0.9999, 0.98, 1000, device=device).cumprod(0)
    began = time.perf_counter()
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            _wait(device)
            began = time.perf_counter()
        x_0, labels = images.batch(torch.randint(len(images), (training.batch,), device=device))
        t = torch.randint(1, 1001, (training.batch,), device=device)
        noise, kept = torch.randn_like(x_0), alphas[t - 1].view(-1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=training.autocasts(device)):
            said = network(kept.sqrt() * x_0 + (1 - kept).sqrt() * noise, t, labels)
        optimiser.zero_grad()
        F.mse_loss(said.float(), noise).backward()
        optimiser.step()
    _wait(device)
    seconds: float = time.perf_counter() - began
    return steps * training.batch / seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else device.type


if __name__ == "__main__":
    bench.main("gpu", measure, BARS, work="runs/gpu", data="data", budget=400.0)
