"""What each shipped recipe of CollaFuse gives away by its cut, in theory: ``--save`` puts it into the recipe's header.

SNR and epsilon follow from the chain and the size of images. How many images are picked out of 1,000 by their release
needs images of the kind (``audit/expected_identification.py``); where they are not at hand, how much 1,000 pictures
must differ to be told apart follows from the noise alone.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from harness import bench, case_files
from harness.tables import header
from manyhands import load_sweep
from manyhands.audit.expected_identification import clouds_of, expected_identification
from manyhands.data.images import as_floats, pooled
from manyhands.methods.collafuse.method import CollaFuse
from manyhands.privacy.accountant import decibel, epsilon, mu_of
from manyhands.runs.compose import silos_of
from manyhands.runs.recipe import Recipe

DELTA, CANDIDATES, TOLD_APART = 1e-5, 1000, 0.99


def shipped() -> list[Path]:
    """The recipes whose silos release images."""
    paths = sorted((bench.ROOT / "recipes").glob("*.toml"))
    return [path for path in paths if isinstance(load_sweep(path).runs()[0].recipe.method, CollaFuse)]


def of_cuts(path: Path) -> list[dict[str, Any]]:
    """What the cuts of a recipe give away whatever the images are, one for each inner cut."""
    return [cut for run in load_sweep(path).runs() if (cut := of_cut(run.recipe)) is not None]


def of_cut(recipe: Recipe) -> dict[str, Any] | None:
    """SNR and epsilon of one release, and the distance that tells pictures apart; None where nothing is noised."""
    method = recipe.method
    assert isinstance(method, CollaFuse)
    schedule, step = method.diffusion.schedule, method.step_of("")
    if step in (0, schedule.steps):
        return None
    snr = float(schedule.snr()[step])
    return {
        "cut": step / schedule.steps,
        "snr_db": round(decibel(snr), 2),
        "epsilon": round(epsilon(mu_of(snr, method.bound), DELTA), 1),
        "told_apart_at": round(distance(snr) / (method.model.channels * method.model.size**2) ** 0.5, 4),
    }


def distance(snr: float) -> float:
    """How far apart any two of 1,000 images must be for the right one to be picked in 99 % of cases, at least.

    The right one loses to another at distance d with chance Phi(-d / 2 sigma), to any of m - 1 with at most the sum.
    """
    tail = torch.tensor((1 - TOLD_APART) / (CANDIDATES - 1), dtype=torch.float64)
    return float(-2 * torch.special.ndtri(tail) * snr**-0.5)


def picked(path: Path, data: Path) -> list[float] | None:
    """The share of images that is picked out of 1,000 at each inner cut, by theory; None where no image is at hand."""
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder) / path.name
        changed.write_text(path.read_text().replace('"data/', f'"{data.resolve()}/'))
        named = re.findall(r'\b(?:images|path|ids|files) = "([^"]+)"', changed.read_text())
        if not all(Path(each).exists() for each in named):
            return None
        runs = load_sweep(changed).runs()
        silos, _ = silos_of(runs[0].recipe)
    public = pooled([silo.held_out for silo in silos if silo.held_out is not None])
    clouds = clouds_of(as_floats(public.pixels), public.labels)
    cuts = [cut for run in runs if (cut := of_cut(run.recipe)) is not None]
    rng = torch.Generator().manual_seed(0)
    return [expected_identification(clouds, 10 ** (-cut["snr_db"] / 20), CANDIDATES, rng) for cut in cuts]


def main() -> None:
    """Compute all, keep a file for each recipe, and put what it says into the recipe's header."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, default=bench.ROOT / "data")
    parser.add_argument("--save", action="store_true", help="write the files and the headers")
    args = parser.parse_args()
    for path in shipped():
        began = time.perf_counter()
        figures = {"cuts": of_cuts(path), "picked": picked(path, args.data)}
        if args.save:
            case = case_files.of_here(figures, time.perf_counter() - began)
            case_files.keep(case_files.FOLDER, "given_away", "small", path.stem, 0, case)
            path.write_text(header(path))
        sys.stdout.write(f"{path.stem}: {figures}\n")


if __name__ == "__main__":
    main()
