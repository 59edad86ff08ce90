"""What a cut GAN gives away, and what a guard on its activations costs: ``manyhands audit`` of runs of one recipe.

A run that is in ``--work`` already is not done again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from harness import bench
from manyhands import compose, load_recipe
from manyhands.audit.effort import Effort
from manyhands.methods.huscf import silo as silo_half
from manyhands.methods.huscf.operations import REAL_FORWARD
from manyhands.report.huscf_audit import best_of
from manyhands.runs.audit import audit
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import parse_recipe
from manyhands.runs.run_folder import RunFolder

BARS = {"leaks_control": ">= 0.95", "leaks_unknown": "<= 0.05", "leaks_tail": ">= 0.95"}
CLIP = 8.0
"""About the norm of what a head of two blocks makes of an image of the digits."""
NOISES = (0.03, 0.1, 0.3)
SHALLOW = {"generator": {"head": 0, "tail": 4}, "discriminator": {"head": 0, "tail": 4}}


def cases() -> dict[str, dict[str, Any]]:
    """What the method is told beside its recipe."""
    noised = {f"noise {noise}": {"guard": {"clip": CLIP, "noise": noise}} for noise in NOISES}
    return {
        "none": {},
        "one block": {"min_head": 0, "cut": SHALLOW},
        "clip alone": {"guard": {"clip": CLIP}},
        **noised,
        "real alone": noised[f"noise {NOISES[1]}"],
    }


def leaks(args: argparse.Namespace) -> dict[str, Any]:
    """Each case: how good its images are, and what an attacker gets of its own head and of generated images."""
    work = Path(tempfile.mkdtemp() if args.quick or not getattr(args, "work", "") else args.work) / "leaks"
    effort = Effort(inverter=20, descent=20) if args.quick else None
    asked = ["none", f"noise {NOISES[1]}"] if args.quick else list(cases())
    measured = {name: _case(name, work / name.replace(" ", "-"), effort, quick=args.quick) for name in asked}
    heads = measured["none"]["heads"]
    return {
        "figures": {
            "leaks_control": heads["0"]["explained"],
            "leaks_unknown": max(head["unknown"] for head in heads.values()),
            "leaks_tail": measured["none"]["tail"],
        },
        "cases": measured,
        "seeds": [0],
    }


def _case(name: str, folder: Path, effort: Effort | None, *, quick: bool) -> dict[str, Any]:
    """Run it, attack it, and say what came of both. Where real activations alone are noised there is no audit."""
    run, alone = RunFolder(folder), name == "real alone"
    if not run.is_ended:
        with mock.patch.object(silo_half, "GUARDED", (REAL_FORWARD,)) if alone else mock.patch.dict({}):
            for _ in compose(_recipe(cases()[name], quick=quick), folder):
                pass
    said = {key: run.report["metrics"].get(key) for key in ("fid", "label_match")}
    if alone:
        return said
    disclosure = run.report.get("disclosure") or audit(run, effort=effort)
    (own,) = disclosure["own"]
    later = disclosure["later"]["heads"][str(own)]
    return said | {
        "own": own,
        "heads": {str(head["head"]): _head(head) for head in disclosure["heads"]},
        "attacks": {attack: _brief(each) for attack, each in disclosure["heads"][own]["attacks"].items()},
        "later": _brief(best_of(later)[1]),
        "tail": disclosure["tails"]["known"]["explained"]["value"],
        "floor": disclosure["floor"]["reconstruction"]["psnr"]["value"],
    }


def _recipe(method: dict[str, Any], *, quick: bool) -> Recipe:
    kept = load_recipe(bench.ROOT / "recipes" / "digits-huscf.toml").resolved()
    kept["method"] |= method
    if quick:
        kept["method"] |= {"rounds": 2, "training": kept["method"]["training"] | {"steps": 3}}
        kept["evaluation"] |= {"images": 60}
        kept["partition"] |= {"silos": 2}
    return parse_recipe(kept)


def _head(head: dict[str, Any]) -> dict[str, Any]:
    name, best = best_of(head["attacks"])
    unknown = best_of(head["unknown_head"])[1]["explained"]["value"]
    labels, recognised = head["labels_of_generated"]["value"], head["recognised"]["value"]
    return _brief(best) | {"by": name, "unknown": unknown, "labels_of_generated": labels, "recognised": recognised}


def _brief(scores: Mapping[str, Any]) -> dict[str, float]:
    figures = {name: scores[name]["value"] for name in ("psnr", "ssim", "explained", "label")}
    return figures | {"picked": scores["identity"]["top_1"]["value"]}


if __name__ == "__main__":
    bench.main("leaking", leaks, BARS, work="")
