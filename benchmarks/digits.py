"""The first result: whether the shipped recipe draws digits that a classifier of real digits recognises as asked."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import bench
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from manyhands import Experiment, compose, load_recipe

BARS = {"digits": ">= 0.95", "train_and_sample_seconds": "<= 90"}


def measure(told: argparse.Namespace) -> bench.Measured:
    """The share of 500 samples on which the asked label is recognised, for each seed; the worst counts."""
    seeds = [0] if told.quick else [0, 1, 2]
    classifier, accuracy = real_digits_classifier()
    shares, seconds = [], []
    for seed in seeds:
        began = time.perf_counter()
        experiment = trained(seed, rounds=2 if told.quick else None)
        labels = [i % 10 for i in range(50 if told.quick else 500)]
        images = experiment.generator().sample(labels=labels, seed=seed)
        seconds.append(round(time.perf_counter() - began, 1))
        shares.append(float((classifier.predict(images.flatten(1).numpy()) == labels).mean()))
    return {
        "figures": {"digits": min(shares), "train_and_sample_seconds": max(seconds)},
        "cases": {"by seed": shares, "seconds": seconds, "classifier on held-out real digits": round(accuracy, 4)},
        "protocol": {"images": len(labels), "sampling": experiment.sampling.model_dump(), "weights": "ema"},
        "seeds": seeds,
    }


def trained(seed: int, rounds: int | None) -> Experiment:
    """The recipe, run as ``manyhands run`` does."""
    recipe = Path(bench.ROOT / "recipes" / "digits-fedavg.toml")
    changes = [f"seed={seed}", *([f"method.rounds={rounds}"] if rounds else [])]
    with tempfile.TemporaryDirectory() as folder:
        experiment = compose(load_recipe(recipe, changes), Path(folder) / "run")
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
    bench.main("digits", measure, BARS)
