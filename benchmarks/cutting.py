"""The model of time against the authors' own figure, and the exact solver against all there is and a genetic one."""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import numpy as np
import torch

from harness.bench import ROOT, Measured, main
from manyhands.models.gan import Gan
from manyhands.models.layer_cut import LayerCuts, every_cut
from manyhands.placement.devices import Device, Fleet, ServerMachine, load_devices
from manyhands.placement.planner import Planner

BARS = {
    "cost_model_off": "<= 5e-05",
    "cost_model_cuts_off": "== 0",
    "exact_seconds": "<= 1",
    "genetic_better": "== 0",
    "brute_differs": "== 0",
}
AUTHORS_SECONDS = 8.1405
AUTHORS_CUTS = {"dev1": "0000", "dev5": "0010", "dev6": "1110"}
"""Those of other kinds are 1111: what of the movable blocks is at home."""
MODEL = Gan(size=28, channels=1, classes=10)
SLACK = 1e-9


def cost_model(quick: bool = False) -> tuple[dict[str, float], dict[str, Any]]:
    """How far the authors' figure is from theirs, and how often others find better cuts than the exact solver."""
    torch.set_num_threads(1)
    fleet = load_devices([ROOT / "examples" / "devices.toml"])
    planner = Planner(fleet.model, fleet, "authors", min_head=0)
    began = time.perf_counter()
    _ = planner.problem  # what blocks cost is counted once for a model
    counted, began = time.perf_counter() - began, time.perf_counter()
    cuts = planner.cuts()
    seconds = time.perf_counter() - began
    expected = {name: AUTHORS_CUTS.get(name, "1111") for name in planner.names}
    genetic = [_against_genetic(seed) for seed in range(2 if quick else 100)]
    brute = [_against_all(seed) for seed in range(2 if quick else 50)]
    figures = {
        "cost_model": planner.seconds(cuts),
        "cost_model_off": abs(planner.seconds(cuts) - AUTHORS_SECONDS),
        "cost_model_cuts_off": float(sum(in_bits(each) != expected[name] for name, each in cuts.items())),
        "exact_seconds": seconds,
        "genetic_better": float(sum(ratio < 1 - SLACK for ratio in genetic)),
        "brute_differs": float(sum(abs(ratio - 1) > SLACK for ratio in brute)),
    }
    return figures, {
        "cuts": {name: str(each) for name, each in cuts.items()},
        "genetic_over_exact": {"worst": max(genetic), "equal": sum(ratio <= 1 + SLACK for ratio in genetic)},
        "counting_seconds": counted,
        "sets": {"genetic": len(genetic), "brute": len(brute)},
    }


def in_bits(cuts: LayerCuts) -> str:
    """As the authors write them."""
    return "".join(f"{cut.head}{4 - cut.tail}" for cut in (cuts.generator, cuts.discriminator))


def devices(rng: np.random.Generator, kinds: int) -> Fleet:
    """So many kinds, from a watch to a workstation; some are short of memory."""
    made = {
        f"d{i}": Device(
            count=int(rng.integers(1, 21)),
            gflops=float(10 ** rng.uniform(-1, 2.5)), rate=float(10 ** rng.uniform(5, 9)),
            memory=float(rng.uniform(60e6, 250e6)) if rng.random() < 0.3 else None,
        )
        for i in range(kinds)
    }  # fmt: skip
    return Fleet(
        server=ServerMachine(gflops=float(rng.uniform(10, 1000)), rate=float(10 ** rng.uniform(6, 9))), devices=made
    )


def _against_genetic(seed: int) -> float:
    """The seconds of the genetic solver's cuts, as a multiple of the exact one's."""
    rng = np.random.default_rng(seed)
    mode, kinds = ("authors", "corrected")[seed % 2], int(rng.integers(2, 8))
    planner = Planner(MODEL, devices(rng, kinds), mode, min_head=seed // 2 % 2)  # type: ignore[arg-type]
    return planner.seconds(planner.cuts("genetic", seed)) / planner.seconds(planner.cuts())


def _against_all(seed: int) -> float:
    """The seconds of the best of all cuts, as a multiple of the exact one's."""
    rng = np.random.default_rng(1000 + seed)
    mode = ("authors", "corrected")[seed % 2]
    planner = Planner(MODEL, devices(rng, 2), mode, min_head=seed // 2 % 2)  # type: ignore[arg-type]
    every = [LayerCuts(generator=g, discriminator=d) for g, d in itertools.product(every_cut(MODEL), repeat=2)]
    fitting = [
        [c for c in every if c.discriminator.head >= planner.min_head and planner.memory(c) <= (each.memory or np.inf)]
        for each in planner.fleet.devices.values()
    ]
    least = min(planner.seconds(dict(zip(planner.names, one, strict=True))) for one in itertools.product(*fitting))
    return least / planner.seconds(planner.cuts())


def measure(args: argparse.Namespace) -> Measured:
    """The figures of the model of time and its solvers."""
    figures, beside = cost_model(args.quick)
    return {"figures": figures, **beside}


if __name__ == "__main__":
    main("cutting", measure, BARS)
