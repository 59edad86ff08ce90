"""How long all metrics take, once the classifier is there."""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from harness import bench, real_images
from manyhands.evaluation.evaluator import Evaluator
from manyhands.evaluation.spec import Evaluation

BARS = {"metric_seconds": "<= 12", "metric_seconds_without_cas": "<= 3"}


def measure(args: argparse.Namespace) -> bench.Measured:
    """Seconds for everything that is said of 1,000 images at 28 x 28: pooled, by silo, by class, floors, spread.

    The classifier, what it sees in the training images, and the figures of real images are kept from an earlier run;
    the median of five.
    """
    silos = real_images.silos(args.data, toy=args.quick)
    if silos is None:
        return {"figures": dict.fromkeys(BARS), "why": f"{args.data} has no folder mnist"}
    evaluator = Evaluator(Evaluation(images=200 if args.quick else 1000), silos)
    real, count = evaluator.real, len(evaluator.held)
    by_label = real.pixels[torch.argsort(real.labels, stable=True)]  # type: ignore[arg-type]
    shown = by_label[:: len(real) // count][:count]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(1 if args.quick else 6):
        for cas in seconds:
            began = time.perf_counter()
            evaluator.verdict([shown], cas=cas)
            seconds[cas].append(time.perf_counter() - began)
    warm = {cas: each[1:] or each for cas, each in seconds.items()}
    return {
        "figures": dict(zip(BARS, (statistics.median(warm[cas]) for cas in (True, False)), strict=True)),
        "cases": {"with CAS": warm[True], "without": warm[False], "first call, with CAS": seconds[True][0]},
        "protocol": {"images": count, "reference": len(real), "silos": len(silos), "classes": 10},
        "seeds": [0],
    }


if __name__ == "__main__":
    bench.main("metric_seconds", measure, BARS, data="data")
