"""What training as practitioners do it, pretrained and latent models, and three clinics' cells come to.

Every case is a ``manyhands run`` of a shipped recipe with a few ``--set``, as in ``federated_diffusion.py``: in a
folder of its own under ``--work``, gone on with where it was cut off, and kept as a file when it has ended. Samplers
are compared on one trained model. ``--cases "flow;v" --seeds 1`` does just these; ``--budget`` says after how many
seconds no further run is begun.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from harness import bench, case_files, claims, real_claims
from manyhands import DiffusionGenerator, Evaluator, Local, Sampling, compose
from manyhands.data.images import pooled
from manyhands.evaluation import features
from manyhands.evaluation.drawing import ImageSource
from manyhands.methods.adapter_figures import naive_bias
from manyhands.runs.compose import silos_of
from manyhands.runs.finished import held_silos, kept_generators
from manyhands.runs.recipe_file import parse_recipe
from manyhands.runs.run_folder import RunFolder

PROGRAM = "real_training"
QUICK = ("v", "flow")
TOY = ("data.limit=300", "evaluation.images=60", "sampling.steps=4", "method.rounds=2", "method.training.steps=3")
SAMPLERS: dict[str, dict[str, dict[str, Any]]] = {
    "v": {"ddim 50": {"sampler": "ddim", "steps": 50}, "dpm++ 10": {"sampler": "dpm++", "steps": 10},
          "ddim 10": {"sampler": "ddim", "steps": 10}},
    "flow": {"dpm++ 10": {"sampler": "dpm++", "steps": 10}, "euler 10": {"sampler": "euler", "steps": 10},
             "heun 5": {"sampler": "heun", "steps": 5}, "euler 50": {"sampler": "euler", "steps": 50}},
}  # fmt: skip
"""How models of these cases are drawn from, beside what their recipe says: a Heun step asks the network twice."""


def measure(args: argparse.Namespace) -> bench.Measured:
    """What all files of cases come to, after those that were asked for have been trained."""
    bench.one_thread_each()
    scale, end = "quick" if args.quick else "small", time.monotonic() + args.budget
    work = Path(tempfile.mkdtemp() if args.quick else args.work) / scale
    root = work if args.quick else case_files.FOLDER
    asked = list(QUICK) if args.quick else case_files.asked(args.cases, real_claims.cases(scale))
    seeds = [0] if args.quick else [int(seed) for seed in args.seeds.split(",")]
    if args.quick or any((Path(args.data) / name).is_dir() for name in ("mnist", "blood-cells")):
        runs = [_run(case, seed, scale, work, Path(args.data)) for seed, case in product(seeds, asked)]
        bench.run_all(
            [_run(case, 0, scale, work, Path(args.data)) for case in _begun_from(asked, scale)], 1, args.budget
        )
        bench.run_all(runs, args.parallel, args.budget)
    for case, seed in product(asked, seeds):
        run = RunFolder(work / _place(case, seed))
        if run.is_ended and not _is_kept(root, scale, case, seed) and time.monotonic() < end:
            case_files.keep(
                root, PROGRAM, scale, case, seed, case_files.of_run(run.path, _figures(run, case), run.report)
            )
    return {"figures": {}, "claims": claims.rows(PROGRAM, scale, root)}


def _begun_from(asked: Sequence[str], scale: str) -> list[str]:
    """The cases whose trained model others begin from, which is that of seed 0."""
    cases = real_claims.cases(scale)
    changes = " ".join(change for case in asked for change in cases[case][1])
    return [case for case in cases if f"WORK/{_place(case, 0)}/" in changes]


def _run(case: str, seed: int, scale: str, work: Path, data: Path) -> bench.Run:
    recipe, changes = real_claims.cases(scale)[case]
    needed = [change.replace("WORK", str(work.resolve())) for change in changes]
    return recipe, work / _place(case, seed), data, [f"seed={seed}", *needed, *(TOY if scale == "quick" else ())]


def _place(case: str, seed: int) -> str:
    return f"{case_files.slug(case)}-{seed}"


def _is_kept(root: Path, scale: str, case: str, seed: int) -> bool:
    return (root / f"{PROGRAM}-{scale}" / f"{_place(case, seed)}.json").exists()


def _figures(run: RunFolder, case: str) -> dict[str, Any]:
    """What a run came to and what it cost; of some, what other samplers come to, or each silo alone."""
    report = run.report
    figures = {
        "fid": report["metrics"]["fid"],
        "floor": report["floor"]["fid"],
        "label_match": report["metrics"].get("label_match"),
        "images_seen": report["images_seen"],
        "bytes": report["bytes_up"] + report["bytes_down"],
        "flops_silo": max(report["flops_silos"].values()),
    }
    if samplers := SAMPLERS.get(case):
        figures["by_sampler"] = _by_sampler(run, samplers)
    if case.startswith("cells"):
        figures |= _of_cells(run, alone=case.startswith("cells local"))
    if case == "lora skewed, naive":
        figures["product_bias"] = _product_bias(run)
    return {name: _rounded(value) for name, value in figures.items()}


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _by_sampler(run: RunFolder, samplers: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    recipe = parse_recipe(run.recipe)
    evaluator, trained = (
        Evaluator(recipe.evaluation, silos_of(recipe)[0]),
        DiffusionGenerator.from_pretrained(run.model),
    )
    every = dict.fromkeys(evaluator.silos, trained)
    return {name: round(evaluator.quick(every, Sampling(**fields))["fid"], 4) for name, fields in samplers.items()}


def _product_bias(run: RunFolder) -> float:
    """How wrong the naive mean of the first round is, as a share of the mean of the products."""
    known = {name: value for name, value in run.recipe["method"].items() if name in Local.model_fields}
    evaluation = {**run.recipe["evaluation"], "images": 0}
    method = {**known, "kind": "local", "rounds": 1}
    experiment = compose(parse_recipe({**run.recipe, "method": method, "evaluation": evaluation}))
    assert len(list(experiment)) == 1
    return naive_bias(experiment.silos)


def _of_cells(run: RunFolder, *, alone: bool) -> dict[str, Any]:
    """The share of samples that a classifier of the held-out slides recognises; alone, each clinic draws everything."""
    recipe, silos = held_silos(run)
    evaluator = Evaluator(recipe.evaluation, silos)
    generators = kept_generators(run, recipe.method, recipe.link)
    held = pooled([silo.held_out for silo in silos if silo.held_out is not None])
    judge = features.classifier(held, pooled([silo.images for silo in silos]))

    def of(drawn_by: Mapping[str, ImageSource]) -> dict[str, float]:
        samples = evaluator.draw(drawn_by, recipe.sampling)
        right = features.embed(judge.network, samples).logits.argmax(1) == evaluator.labels
        figures = evaluator.measure(evaluator.embed(samples), cas=False)
        return {"fid": round(figures["fid"], 4), "recognised": right.float().mean().item()}

    both = of(generators)
    if alone:
        both = min((of(dict.fromkeys(evaluator.silos, own)) for own in generators.values()), key=lambda one: one["fid"])
    return both | {"judge": judge.accuracy}


if __name__ == "__main__":
    options = {"seeds": "1,2,3", "cases": "", "work": f"runs/{PROGRAM}", "data": "data"}
    bench.main(PROGRAM, measure, {}, **options, budget=1e9, parallel=2)
