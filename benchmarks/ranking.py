"""Whether the metrics rank as anyone would: real images, a GAN, the same GAN earlier, noise."""

from __future__ import annotations

import argparse
from itertools import pairwise

import torch

from harness import bench, real_images, toy_gan
from manyhands.data.images import pooled
from manyhands.evaluation.evaluator import Evaluator
from manyhands.evaluation.metrics import LOWER_IS_BETTER
from manyhands.evaluation.spec import Evaluation

BARS = {"ranking": "== 1"}
METRICS = ("fid", "kid", "coverage", "cas")


def measure(args: argparse.Namespace) -> bench.Measured:
    """The share of FID, KID, coverage and CAS that put all four in the right order, by 1,000 images of MNIST each."""
    silos = real_images.silos(args.data, toy=args.quick)
    if silos is None:
        return {"figures": {"ranking": None}, "why": f"{args.data} has no folder mnist"}
    evaluator = Evaluator(Evaluation(images=100 if args.quick else 1000, cas=True), silos)
    images, late = pooled([silo.images for silo in silos]), 20 if args.quick else 4000
    metrics = {}
    for step, drawer in enumerate(toy_gan.training(images, late, seed=0), 1):
        if step in (late // 4, late):
            metrics[f"GAN, {step} steps"] = evaluator.measure(evaluator.embed(toy_gan.draw(drawer, evaluator.labels)))
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, evaluator.held.pixels.shape, dtype=torch.uint8, generator=rng)
    early, good = metrics.values()
    ranks = [evaluator.floor(cas=True), good, early, evaluator.measure(evaluator.embed(noise))]
    right = {
        name: _falls([marks[name] * (-1 if name in LOWER_IS_BETTER else 1) for marks in ranks]) for name in METRICS
    }
    names = ["real images", *reversed(metrics), "noise"]
    return {
        "figures": {"ranking": sum(right.values()) / len(right)},
        "cases": dict(zip(names, ranks, strict=True)),
        "right": right,
        "protocol": {
            "images": len(evaluator.held),
            "reference": len(evaluator.real),
            "features": evaluator.extractor.name,
        },
        "seeds": [0],
    }


def _falls(values: list[float]) -> bool:
    return all(a > b for a, b in pairwise(values))


if __name__ == "__main__":
    bench.main("ranking", measure, BARS, data="data")
