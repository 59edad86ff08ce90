"""The first result: whether the shipped recipe draws digits that a classifier of real digits recognises as asked."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from harness import bench, case_files, claims
from manyhands import Experiment, compose, load_recipe

RECIPE = bench.ROOT / "recipes" / "digits-fedavg.toml"
CASE = "digits-fedavg"
QUICK = ("method.rounds=2", "method.training.steps=3")


def measure(args: argparse.Namespace) -> bench.Measured:
    """The share of 500 samples on which the asked label is recognised, for each seed; the worst counts."""
    root, scale = (Path(tempfile.mkdtemp()), "quick") if args.quick else (case_files.FOLDER, "small")
    classifier, accuracy = real_digits_classifier()
    for seed in [0] if args.quick else [int(seed) for seed in args.seeds.split(",")]:
        began = time.perf_counter()
        experiment = trained(seed, QUICK if args.quick else ())
        labels = [i % 10 for i in range(50 if args.quick else 500)]
        images = experiment.generator().sample(labels=labels, seed=seed)
        seconds = time.perf_counter() - began
        share = float((classifier.predict(images.flatten(1).numpy()) == labels).mean())
        figures = {"recognised": share, "seconds": round(seconds, 1), "images": len(labels), "classifier": accuracy}
        case_files.keep(root, "digits", scale, CASE, seed, case_files.of_here(figures, seconds, RECIPE))
    return {"figures": {}, "claims": claims.rows("digits", scale, root)}


def trained(seed: int, changes: Sequence[str] = ()) -> Experiment:
    """The recipe, run as ``manyhands run`` does."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = compose(load_recipe(RECIPE, [f"seed={seed}", *changes]), Path(folder) / "run")
        for _ in experiment:
            pass
    return experiment


def real_digits_classifier() -> tuple[SVC, float]:
    """A support vector machine trained on 70 % of the real digits, and its accuracy on the rest."""
    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)) / 127.5 - 1
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.3, random_state=0, stratify=labels)
    classifier = SVC(C=10).fit(train_x, train_y)
    return classifier, classifier.score(test_x, test_y)


if __name__ == "__main__":
    bench.main("digits", measure, {}, cases="", seeds="0,1,2")
