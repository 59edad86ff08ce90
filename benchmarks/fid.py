"""Whether FID and KID are what they are called: against float64 computations written out here."""

from __future__ import annotations

import argparse

import numpy as np
from scipy.linalg import sqrtm

from harness import bench
from manyhands import Digits
from manyhands.evaluation import features, metrics

BARS = {"fid_reference": "<= 1e-3", "kid_unbiased": "<= 3"}


def measure(args: argparse.Namespace) -> bench.Measured:
    """FID of real digits with themselves and against scipy; KID over draws from one set, in standard errors."""
    train, held = Digits().load(8).hold_out(0.3).split_held_out()
    seen = features.classifier(train, held)(train.pixels).features
    fid = metrics.Fid(seen)
    cases = {"with itself": abs(fid(seen))}
    for name, samples in {"half": seen[::2], "shifted": seen[::3] + 0.1, "scaled": seen[:300] * 1.3}.items():
        cases[f"{name}, against scipy"] = abs(fid(samples) - reference(samples.double().numpy(), seen.double().numpy()))
    rng, size, draws = np.random.default_rng(0), 200, 10 if args.quick else 100
    kids = []
    for _ in range(draws):
        order = rng.permutation(len(seen))
        kids.append(metrics.kid(seen[order[:size]], seen[order[size : 2 * size]]))
    errors = abs(float(np.mean(kids))) / (float(np.std(kids, ddof=1)) / draws**0.5)
    return {
        "figures": {"fid_reference": max(cases.values()), "kid_unbiased": errors},
        "cases": cases | {"mean KID of equal sets": float(np.mean(kids)), "deviation": float(np.std(kids, ddof=1))},
        "seeds": [0],
    }


def reference(a: np.ndarray, b: np.ndarray) -> float:
    """The Frechet distance, by the formula, in float64."""
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    offset = 1e-10 * np.eye(len(s))  # features that are never active make the product singular
    root = sqrtm((s + offset) @ (t + offset)).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root))


if __name__ == "__main__":
    bench.main("fid", measure, BARS)
