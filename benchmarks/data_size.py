"""A set of images that is larger than memory should be: prepared once, split, trained on and judged."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from harness import bench
from harness.fork_server import printed
from harness.many_pictures import bare_loop, write_zip

BARS = {"memory_large": "<= 1.2", "second_start": "<= 5", "prepare": ">= 0.8", "loader": "<= 0.05"}
SIZE, SILOS, PROCESSES = 64, 10, 2
COUNT, JUDGED, COMPARED = 202_599, 10_000, 40_000
"""As many images as CelebA has; how many of them are judged; and how many are prepared to compare the speed."""
WIDTHS, BATCH = (32, 64, 128), 32
"""A U-Net that is far smaller than that of the recipe for CelebA, so that a batch is a larger share of its step."""
NARROW, FEW = (16, 32), 8
"""The network and the batch of the run whose memory is measured, so that it is that of the images."""


def measure(args: argparse.Namespace) -> bench.Measured:
    """Peak memory and times of 202,599 pictures at 64 x 64, and how fast they are prepared and come in batches."""
    bench.one_thread_each()
    count, judged, compared = (600, 60, 600) if args.quick else (COUNT, JUDGED, COMPARED)
    with tempfile.TemporaryDirectory(prefix="manyhands-data-size-") as folder:
        path = Path(folder, "pictures.zip")
        write_zip(path, count, PROCESSES)
        os.environ["MANYHANDS_CACHE"] = str(Path(folder, "cache"))
        child = partial(_child, path, judged, fresh=not args.quick)
        prepared, again, used = child("prepare"), child("start"), child("use")
        loader = child("loader")
        ratios = [_compared(Path(folder), compared, turn) for turn in range(1 if args.quick else 3)]
    peak = max(prepared["gb"], used["gb"])
    return {
        "figures": {
            "memory_large": round(peak, 3),
            "second_start": round(again["seconds"], 2),
            "prepare": round(statistics.median(ratio["ratio"] for ratio in ratios), 3),
            "loader": round(loader["batch"] / loader["step"], 4),
        },
        "cases": {
            "images": count,
            "bytes of pixels": count * 3 * SIZE**2,
            "prepare": prepared,
            "second start, imports apart": again,
            "start, split, train a step at each silo, judge": used,
            "images/s against the bare loop": ratios,
            "loader": loader,
        },
        "seeds": [0],
        "why": "the classifier whose features are compared is trained for few steps: what it learns is not measured",
    }


def _child(path: Path, judged: int, what: str, *, fresh: bool) -> dict[str, Any]:
    """What a process of its own measures."""
    result: dict[str, Any] = json.loads(printed("data_size", "--child", what, str(path), str(judged), fresh=fresh))
    print(what, result, file=sys.stderr, flush=True)
    return result


def _compared(folder: Path, count: int, turn: int) -> dict[str, float]:
    """Our images/s over those of a bare loop on as many processes, one after the other."""
    path = folder / "compared.zip"
    if not path.exists():
        write_zip(path, count, PROCESSES)
    os.environ["MANYHANDS_CACHE"] = str(folder / f"compared-{turn}")
    bare, ours = _bare(path), _ours(path)
    return {"ours": round(count / ours), "bare": round(count / bare), "ratio": round(bare / ours, 3)}


def _bare(path: Path) -> float:
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.map(partial(bare_loop, path, SIZE), [(i, PROCESSES) for i in range(PROCESSES)], chunksize=1)
    return time.perf_counter() - began


def _ours(path: Path) -> float:
    from manyhands import Zip

    began = time.perf_counter()
    Zip(path=path).load(SIZE, 3, ("a", "b"))
    return time.perf_counter() - began


class Peak:
    """The peak resident memory of this process and of those that it starts, in GB, which are seen as images come."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}

    def look(self, *_: object) -> None:
        """See the processes that there are now."""
        for listed in Path("/proc/self/task").glob("*/children"):
            for child in listed.read_text().split():
                with suppress(OSError):
                    self._started[child] = _high_water(child)

    @property
    def gigabytes(self) -> float:
        """The sum of their peaks so far."""
        return round(_high_water("self") + sum(self._started.values()), 3)


def _high_water(process: str) -> float:
    """Unlike ``getrusage``, it does not count what a process had before it became another program."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM")), 0.0)


def start(path: Path, _: int) -> dict[str, Any]:
    """Load and split; what is imported is imported before."""
    from manyhands import Iid, split
    from manyhands.data.sources.decoding import WATCHER
    from manyhands.runs.data import Data

    began, peak = time.perf_counter(), Peak()
    WATCHER.set(peak.look)
    images = Data.model_validate({"size": SIZE, "channels": 3, "source": {"kind": "zip", "path": path}}).load()
    silos = split(images, Iid(silos=SILOS))
    return {"seconds": round(time.perf_counter() - began, 2), "gb": peak.gigabytes, "silos": silos}


def use(path: Path, judged: int) -> dict[str, Any]:
    """Load, split, train a step at each silo, and judge noise by as many held-out images."""
    import torch

    from manyhands import Evaluation, Experiment, FedAvg, Training, UNet
    from manyhands.evaluation import features
    from manyhands.evaluation.evaluator import Evaluator

    peaks: dict[str, Any] = {}
    silos = start(path, judged)["silos"]
    peaks["split"] = Peak().gigabytes
    model = UNet(size=SIZE, channels=3, classes=2, widths=NARROW)
    method = FedAvg(model=model, training=Training(batch=FEW, steps=1), rounds=1)
    assert len(list(Experiment(method, silos, device="cpu", evaluation=Evaluation(images=0)))) == 1
    peaks["trained"] = Peak().gigabytes
    features.MIN_STEPS = features.MAX_STEPS = 20
    evaluator = Evaluator(Evaluation(images=judged), silos)
    noise = torch.randint(0, 256, evaluator.held.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert len(evaluator.verdict([noise])["metrics"]) > 5
    return peaks | {"gb": Peak().gigabytes}


def loader(path: Path, judged: int) -> dict[str, Any]:
    """The seconds that a batch takes to come, and those of the training step on it: medians."""
    import torch

    from manyhands import Diffusion, UNet

    images = start(path, judged)["silos"][0].images
    full = judged == JUDGED
    network = UNet(size=SIZE, channels=3, classes=2, widths=WIDTHS if full else NARROW).build(seed=0)
    optimiser, rng = torch.optim.Adam(network.parameters(), fused=True), torch.Generator().manual_seed(0)
    batches, steps = [], []
    for numbers in torch.randperm(len(images), generator=rng)[: (8 if full else 2) * BATCH].split(BATCH):
        began = time.perf_counter()
        x_0, labels = images.batch(numbers)
        came = time.perf_counter()
        optimiser.zero_grad()
        Diffusion().loss(network, x_0, labels, 2, rng).backward()
        optimiser.step()
        batches.append(came - began)
        steps.append(time.perf_counter() - came)
    return {"batch": statistics.median(batches), "step": statistics.median(steps), "images": BATCH}


def _run_child(what: str, path: Path, judged: int) -> None:
    import torch

    from manyhands.methods.learners import denoiser  # noqa: F401 - imports apart
    from manyhands.runs import data  # noqa: F401

    torch.set_num_threads(1)
    measured = {"prepare": start, "start": start, "use": use, "loader": loader}[what](path, judged)
    measured.pop("silos", None)
    print(json.dumps(measured))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _run_child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        bench.main("data_size", measure, BARS)
