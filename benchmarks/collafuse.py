"""What CollaFuse comes to: exactness, quality over the cut, a silo's work, traffic, secrets, re-identification, speed.

Quality is of ``manyhands run`` of a shipped recipe with a few ``--set``, each in a folder of its own under ``--work``.
A run that has ended is not done again, and one that was cut off goes on, so that all can be done in pieces: after
``--budget`` seconds no further run is begun. Of each that has ended a file is kept in ``benchmarks/results/cases``, and
what is claimed is of all files that lie there (``claims.py``). ``--cases "exact 0.4;alone" --seeds 2`` does just these;
all else is measured anew each time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import bench, case_files, claims, gaussian, wiretap
from manyhands import Experiment, Iid, Training, UNet, load_recipe, split
from manyhands.audit.attacks import identity
from manyhands.audit.expected_identification import clouds_of, expected_identification, first_hidden_step
from manyhands.data.images import as_floats, pooled
from manyhands.data.sources.digits import Digits
from manyhands.diffusion.objective import noised
from manyhands.methods.collafuse.method import CollaFuse
from manyhands.runs.compose import silos_of
from manyhands.runs.run_folder import RunFolder
from manyhands.silos.local_training import steps

BARS = {
    "exactness": "<= 0.02", "exactness_authors": ">= 0.02",
    "traffic": "<= 1.05", "traffic_fresh": ">= 100",
    "secrets": "== 0", "secrets_algebra": "== 0", "secrets_control": "== 1",
    "reidentification": "<= 0.01", "reidentification_theory": "<= 0.2",
    "speed": ">= 0.9",
}  # fmt: skip
RECIPES = {"small": "mnist16-collafuse", "paper": "collafuse-celeba", "quick": "digits-collafuse"}
DATA = {"small": "mnist", "paper": "img_align_celeba.zip", "quick": "nothing"}
TOY = (*bench.TOY, "sampling.steps=5", "method.rounds=9", "method.training.steps=2", "partition.silos=2")
NORMS = (0.3, 0.6, 1.0, 1.5)
"""Of images whose norms are 1 in the mean, and 2 at most."""
PICKED = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DRAWS = 40
FORETOLD = 40_000
"""How many draws the share of picked images and its theory are a mean of: it is their difference that is measured."""


def measure(args: argparse.Namespace) -> bench.Measured:
    """Everything; with ``--cases`` the files of those cases alone. Claims are of the files that there are."""
    scale = "quick" if args.quick else args.scale
    claimed = quality(args, scale)
    if args.cases:
        return {"figures": {}, "claims": claimed}
    measured: dict[str, float | None] = dict.fromkeys(BARS)
    shown: dict[str, Any] = {}
    for part in (exactness, traffic, secrets, speed):
        figures, beside = part(args)
        measured |= figures
        shown |= beside
    recipe = "digits-collafuse" if args.quick or not (Path(args.data) / "mnist").is_dir() else "mnist16-collafuse"
    figures, beside = reidentification(args, recipe)
    return {"figures": measured | figures, "claims": claimed, **shown, **beside}


def quality(args: argparse.Namespace, scale: str) -> dict[str, Any]:
    """Train what has not ended and has its data here, keep the files, and say what all files come to."""
    work = Path(tempfile.mkdtemp() if args.quick else args.work) / scale
    root = work if args.quick else case_files.FOLDER
    every = claims.collafuse_cases(scale)
    asked = ["exact 0.2", "light 0.2"] if args.quick else case_files.asked(args.cases, every)
    toy = TOY if args.quick else ()

    def run(name: str, seed: int) -> bench.Run:
        folder, recipe = work / _place(name, seed), RECIPES[scale]
        recipe = _averaged(recipe, folder) if name.startswith("fedavg") else recipe
        return recipe, folder, Path(args.data), [f"seed={seed}", *every[name], *toy]

    if args.quick or (Path(args.data) / DATA[scale]).exists():
        bench.run_all([run(name, seed) for seed, name in product(_seeds(args), asked)], args.parallel, args.budget)
    for name, seed in product(asked, _seeds(args)):
        at = RunFolder(work / _place(name, seed))
        if at.is_ended:
            record = case_files.of_run(at.path, of(at.report), at.report)
            case_files.keep(root, "collafuse", scale, name, seed, record)
    return claims.rows("collafuse", scale, root)


def of(report: dict[str, Any]) -> dict[str, Any]:
    """What a run came to, and what it cost a silo."""
    return {
        "fid": round(report["metrics"]["fid"], 4),
        "floor": round(report["floor"]["fid"], 4),
        "label_match": round(report["metrics"].get("label_match", 0), 4),
        "images_seen": report["images_seen"],
        "flops_silo": max(report["flops_silos"].values()),
        "flops_server": report["flops_server"],
        "bytes_up": report["bytes_up"],
        "bytes_down": report["bytes_down"],
        "costs": next(iter(report.get("costs", {}).values()), {}),
    }


def exactness(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """Gaussian images of which theory knows everything: the worst error of mean and covariance, over nine cuts.

    And of points of them that are squeezed into norms, over three cuts.
    """
    cuts = (0.5,) if args.quick else tuple(round(0.1 * i, 1) for i in range(1, 10))
    errors = {mode: {cut: gaussian.errors(mode, cut, learnt=not args.quick) for cut in cuts} for mode in gaussian.MODES}
    worst = {mode: [max(each.values()) for each in of.values()] for mode, of in errors.items()}
    norms = {
        norm: {cut: gaussian.norm_errors(norm, cut) for cut in cuts[::4]} for norm in NORMS[: 1 if args.quick else None]
    }
    within = [each[at] for of in norms.values() for each in of.values() for at in ("hand-over", "end")]
    figures = {"exactness": max(worst["exact"] + within), "exactness_authors": min(worst["authors"])}
    return figures, {"gaussian": errors, "gaussian_norm": norms}


def traffic(_: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """Bytes upward of a whole training run, against those of the images in float32; and what releasing anew would send.

    The authors' settings: 1,800 rounds of 10 steps of 50 images, of a silo that has 2,000.
    """
    source = split(Digits().load(8), Iid(silos=5))
    experiment = Experiment(_toy(labels="withhold"), source, device="cpu")
    for _done in experiment:
        pass
    plain = 4 * 64 * sum(experiment.roster.values())
    up = {row["op"]: 0 for row in experiment.ledger.entries()}
    for entry in experiment.ledger.entries():
        up[entry["op"]] += entry["bytes"] if entry["direction"] == "up" else 0
    theirs = _toy(release="fresh", rounds=1800, training=Training(batch=50, steps=10))
    short = Experiment(_toy(release="fresh"), source, device="cpu")
    for _done in short:
        pass
    entries = short.ledger.entries()
    again = sum(each["bytes"] for each in entries if (each["op"], each["direction"]) == ("release", "up"))
    anew = _toy(release="fresh")
    expected = 4 * 64 * sum(anew.releases(count) * count for count in short.roster.values())
    figures = {"traffic": up["release"] / plain, "traffic_fresh": theirs.releases(2000)}
    return figures, {"up": up, "images": plain, "fresh_measured": again / expected}


def secrets(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """Every byte that leaves five silos in a whole run, searched for 1,000 marked images, their labels and names."""
    count = 100 if args.quick else 1000
    counts = wiretap.tapped(_toy(labels="withhold"), count)
    control = wiretap.tapped(_toy(labels="share", cut=0), count)
    leaks = {name: counts[name] for name in ("images", "labels", "names")}
    figures = {
        "secrets": float(sum(leaks.values())),
        "secrets_algebra": float(counts["algebra"]),
        "secrets_control": min(control["images"], control["labels"], counts["algebra_control"]) / count,
    }
    return figures, {"leaks": counts, "leaks_at_cut_0": control}


def reidentification(args: argparse.Namespace, recipe: str) -> tuple[dict[str, float], dict[str, Any]]:
    """How often an image is picked out of 1,000 by its release, at the recommended cut; and against theory over 8."""
    path = bench.ROOT / "recipes" / f"{recipe}.toml"
    changed = Path(tempfile.mkdtemp()) / path.name
    changed.write_text(path.read_text().replace('"data/', f'"{Path(args.data).resolve()}/'))
    silos, _ = silos_of(load_recipe(changed))
    private = as_floats(pooled([silo.images for silo in silos]).pixels[: 100 if args.quick else 1000])
    public = pooled([silo.held_out for silo in silos if silo.held_out is not None])
    method = load_recipe(changed).method
    assert isinstance(method, CollaFuse)
    schedule, rng = method.diffusion.schedule, torch.Generator().manual_seed(0)
    clouds = clouds_of(as_floats(public.pixels), public.labels)

    def both(cut: int) -> dict[str, float]:
        alpha, sigma = schedule.levels(torch.tensor([cut]), private)
        draws = [torch.randn(private.shape, generator=rng) for _ in range(1 if args.quick else DRAWS)]
        hits = [identity.recognised(noised(private, eps, alpha, sigma), private, float(alpha)) for eps in draws]
        count = FORETOLD // (10 if args.quick else 1)
        theory = expected_identification(clouds, float(sigma / alpha), len(private), rng, count)
        return {"picked": float(torch.stack(hits).float().mean()), "theory": theory}

    over = {share: both(round(share * schedule.steps)) for share in PICKED[:: 4 if args.quick else 1]}
    cut = first_hidden_step(clouds, schedule, len(private), seed=1)
    at = both(schedule.steps if cut is None else cut)
    off = max(abs(each["picked"] / each["theory"] - 1) for each in over.values())
    shown = {
        "recommended_cut": cut and cut / schedule.steps,
        "at_it": at,
        "picked": over,
        "of": len(private),
        "data": recipe,
    }
    return {"reidentification": at["picked"], "reidentification_theory": off}, {"reidentified": shown}


def speed(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """Steps a second of the server while eight silos release and train, against a bare loop over the same network.

    Of the run, only the time counts in which the server is at work: its training, and all that it is asked.
    """
    rounds, each = (2, 5) if args.quick else (6, 60)
    model = UNet(size=16, channels=1, classes=10, widths=(16, 32))
    silos = split(Digits().load(16), Iid(silos=8))
    light = UNet(size=16, channels=1, classes=10, widths=(8,))
    shares = {"training": Training(batch=8, steps=1), "server_training": Training(batch=32, steps=each)}
    method = _toy(model=model, silo_model=light, rounds=rounds, **shares)
    ratios = []
    for _ in range(1 if args.quick else 3):
        bare = _bare(model, each * rounds // 2)
        link = wiretap.Timed(wire="bytes")
        for _ in Experiment(method, silos, device="cpu", link=link):
            pass
        ratios.append(each * rounds / link.clock[0] / ((bare + _bare(model, each * rounds // 2)) / 2))
    return {"speed": float(np.median(ratios))}, {"speeds": [round(ratio, 3) for ratio in ratios]}


def _bare(model: UNet, count: int) -> float:
    """Steps a second of a plain loop."""
    network, training = model.build(0), Training(batch=32, steps=count)
    optimiser, rng = training.optimiser_of(network, 0), torch.Generator().manual_seed(0)
    x, labels = torch.randn(1000, 1, 16, 16), torch.randint(10, (1000,))
    method = _toy()

    def loss(numbers: torch.Tensor) -> torch.Tensor:
        return method.diffusion.loss(network, x[numbers], labels[numbers], 10, rng)

    began = time.perf_counter()
    for _ in steps(network, optimiser, training.batches(1000, rng), loss, clip=1.0):
        pass
    return count / (time.perf_counter() - began)


def _toy(**fields: Any) -> CollaFuse:
    options = {
        "model": UNet(size=8, channels=1, classes=10, widths=(8,)), "cut": 0.5, "labels": "share", "rounds": 5,
        "training": Training(batch=8, steps=2), **fields,
    }  # fmt: skip
    return CollaFuse.model_validate(options)


def _averaged(recipe: str, folder: Path) -> str:
    """The same recipe with fedavg in the place of collafuse: the networks of silos, averaged over each round."""
    shipped = (bench.ROOT / "recipes" / f"{recipe}.toml").read_text()
    head, tail = shipped.split("[method.server_training]")[0], "[sampling]" + shipped.split("[sampling]")[1]
    before, method = head.replace('kind = "collafuse"', 'kind = "fedavg"\nkeep_optimiser = true').split("[method]")
    kept = [line for line in method.splitlines() if not line.startswith(("cut =", "labels ="))]
    path = folder.with_name(f"{folder.name}-shipped.toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}[method]" + "\n".join(kept) + "\n" + tail)
    return str(path)


def _place(name: str, seed: int) -> str:
    return f"{name.replace(' ', '-')}-{seed}"


def _seeds(args: argparse.Namespace) -> list[int]:
    return [0] if args.quick else [int(seed) for seed in args.seeds.split(",")]


if __name__ == "__main__":
    options = {"scale": "small", "seeds": "1,2,3", "cases": "", "work": "runs/collafuse", "data": "data"}
    bench.main("collafuse", measure, BARS, **options, budget=1e9, parallel=2)
