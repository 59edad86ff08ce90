"""What HuSCF-GAN comes to: exactness of the cut, its wire, its model of time, clusters, quality, traffic and speed.

Quality is of ``manyhands run`` of shipped recipes, each in a folder of its own under ``--work``. A run that has ended
is not done again, and one that was cut off goes on; after ``--budget`` seconds no further run is begun. Of each that
has ended a file is kept in ``benchmarks/results/cases``, and what is claimed is of all files that lie there
(``claims.py``). ``--cases "huscf 3;central 3" --seeds 2`` does just these. Parts that take many minutes are kept under
``--work``, too, and left out by ``--budget 0``. Everything else is measured anew each time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

import leaking
from cutting import cost_model
from harness import bench, case_files, claims
from harness.whole_gan import together
from manyhands import Experiment, Images, Silo
from manyhands.methods.huscf.method import HuSCF
from manyhands.methods.huscf.operations import ORDER
from manyhands.models.gan import Gan, iteration
from manyhands.models.layer_cut import LayerCuts, every_cut
from manyhands.runs.run_folder import RunFolder
from manyhands.silos.training import GanTraining
from manyhands.tensors import strip_prefix
from throttled import predicted

BARS = {
    "split_equals_whole": "<= 1e-6", "split_equals_whole_many": "<= 1e-6",
    "wire": "<= 0.001", "wire_messages": "== 16",
    "cost_model": "<= 8.1406", "cost_model_off": "<= 5e-05", "cost_model_cuts_off": "== 0",
    "exact_seconds": "<= 1", "genetic_better": "== 0", "brute_differs": "== 0",
    "predicted": "<= 0.3", "predicted_choice": "<= 1.1", **leaking.BARS,
    "speed": ">= 0.7",
}  # fmt: skip
TABLE = {"0404": 27.46, "0414": 22.64, "1313": 22.48, "1314": 19.43, "0314": 16.22, "1403": 33.72}
"""Megabytes that a device sends in an iteration of 64 images, by cuts: the notes' table."""


def measure(args: argparse.Namespace) -> bench.Measured:
    """Everything; with ``--cases`` the files of those cases alone. Claims are of the files that there are."""
    claimed = quality(args)
    if args.cases:
        return {"figures": {}, "claims": claimed}
    figures: dict[str, float | None] = dict.fromkeys(BARS)
    shown: dict[str, Any] = {}
    for part in (split_equals_whole, wire, speed):
        measured, beside = part(args)
        figures |= measured
        shown |= beside
    for name, slow in (("cost_model", cost_model), ("predicted", predicted), ("leaks", lambda _: _leaks(args))):
        measured, shown[name] = _kept(args, name, slow)
        figures |= {name: measured[name] for name in BARS.keys() & measured.keys()}
    return {"figures": figures, "claims": claimed, **shown}


def quality(args: argparse.Namespace) -> dict[str, Any]:
    """Train what has not ended and has its data here, keep the files, and say what all files come to."""
    scale = "quick" if args.quick else args.scale
    work = Path(tempfile.mkdtemp() if args.quick else args.work) / scale
    root = work if args.quick else case_files.FOLDER
    every = claims.huscf_cases(scale)
    asked = case_files.asked(args.cases, every)
    toy = (*bench.TOY, "method.rounds=3", "method.training.steps=3") if args.quick else ()

    def run(name: str, seed: int) -> bench.Run:
        recipe, kind, changes = every[name]
        folder = work / _place(name, seed)
        return _by(kind, recipe, folder), folder, Path(args.data), [f"seed={seed}", *changes, *toy]

    if args.quick or all((Path(args.data) / name).is_dir() for name in ("mnist", "fashion-mnist")):
        bench.run_all([run(name, seed) for seed, name in product(_seeds(args), asked)], args.parallel, args.budget)
    for name, seed in product(asked, _seeds(args)):
        at = RunFolder(work / _place(name, seed))
        if at.is_ended:
            record = case_files.of_run(at.path, of(at.report) | {"passed": _passed(at)}, at.report)
            case_files.keep(root, "huscf", scale, name, seed, record)
    return claims.rows("huscf", scale, root)


def _passed(run: RunFolder) -> int:
    """The bytes of all activations and their gradients, both ways."""
    return sum(entry["bytes"] for entry in run.ledger if entry["op"] in ORDER)


def of(report: dict[str, Any]) -> dict[str, Any]:
    """What a run came to, accuracies in points, and what it cost."""
    domains = report.get("evaluation", {}).get("groups", {}).get("domains", {})
    metrics = {name: domain["metrics"] for name, domain in domains.items()}
    by_domain = {f"cas {name}": round(100 * domain["cas"], 2) for name, domain in metrics.items() if "cas" in domain}
    return {
        "cas": round(100 * report["metrics"]["cas"], 2) if "cas" in report["metrics"] else None,
        **by_domain,
        "cas_real": round(100 * report["floor"]["cas"], 2) if "cas" in report["floor"] else None,
        "fid": report["metrics"].get("fid"),
        "floor": report["floor"].get("fid"),
        "label_match": report["metrics"].get("label_match"),
        "agreement": (report.get("clusters") or {}).get("agreement"),
        "bytes": report["bytes_up"] + report["bytes_down"],
        "flops_silo": max(report["flops_silos"].values()),
        "flops_server": report["flops_server"],
    }


def split_equals_whole(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """How far weights are from those of the uncut GAN after 20 steps: one silo at each cut; many, each with its own."""
    model, steps = Gan(size=16, channels=1, classes=2, latent=8, width=8), 4 if args.quick else 20
    training = GanTraining(batch=8, steps=steps, learning_rate=1e-3)
    whole = _uncut(model, training, _silos(1)[0])
    all_cuts = [LayerCuts(generator=g, discriminator=d) for g, d in product(every_cut(model), every_cut(model))]
    one = {}
    for cuts in all_cuts[:: 5 if args.quick else 1]:
        method = _method(model, training, cut=cuts)
        one[str(cuts)] = _apart(whole, _weights(_trained(method, _silos(1)))["s00"])
    many = {}
    for norm in ("group", "batch"):
        silos = _silos(4 if args.quick else 16)
        own = {silo.name: cuts for silo, cuts in zip(silos, all_cuts, strict=False)}
        method = _method(model.model_copy(update={"norm": norm}), training, cuts=own)
        expected = together(method, silos)
        mean = {name: sum(each[name] for each in expected.values()) / len(silos) for name in expected["s00"]}
        trained = _weights(_trained(method, silos))
        many[norm] = max(_apart(mean, each, beside_norms=norm == "batch") for each in trained.values())
    figures = {"split_equals_whole": max(one.values()), "split_equals_whole_many": many["group"]}
    return figures, {"split": {"one silo": one, "16 silos": many}}


def wire(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """Messages and bytes of an iteration at the paper's size, one silo at each cut, against the notes' table."""
    model, batch = Gan(size=28, channels=1, classes=10, width=16 if args.quick else 64), 8 if args.quick else 64
    texts = list(TABLE) if args.quick else [f"{a}{b}{c}{d}" for a, b, c, d in product("01", "34", "01", "34")]
    silos = _silos(len(texts), images=batch, size=28, classes=10)
    own = {silo.name: _cuts(text) for silo, text in zip(silos, texts, strict=True)}
    method = _method(model, GanTraining(batch=batch, steps=1), cuts=own)
    experiment = _trained(method, silos)
    shown: dict[str, Any] = {}
    for silo, text in zip(silos, texts, strict=True):
        mine = [e for e in experiment.ledger.entries() if e["silo"] == silo.name and e["op"] in ORDER]
        up = sum(entry["bytes"] for entry in mine if entry["direction"] == "up")
        plain = {way: sum(4 * batch * method.passed_tensor(op, own[silo.name], up=way == "up").size for op in ORDER)
                 for way in ("up", "down")}  # fmt: skip
        both = sum(entry["bytes"] for entry in mine)
        shown[text] = {"messages": len(mine), "up": up, "headers": both - sum(plain.values()), "plain": plain["up"]}
    off = [abs(each["up"] / each["plain"] - 1) for each in shown.values()]
    if not args.quick:  # the table is of two decimals
        off += [abs(shown[text]["plain"] / (1e6 * theirs) - 1) - 0.005 / theirs for text, theirs in TABLE.items()]
    messages = max(each["messages"] for each in shown.values())
    return {"wire": max(off), "wire_messages": float(messages)}, {"wire": shown}


def speed(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """Iterations a second of eight silos with mixed cuts, against the uncut GAN on batches as large as all theirs."""
    model = Gan(size=28, channels=1, classes=10, width=8 if args.quick else 32)
    batch, steps = (8, 2) if args.quick else (32, 6)
    silos = _silos(8, images=batch, size=28, classes=10)
    texts = ("0404", "1313", "0314", "1403", "0414", "1304", "0313", "1414")
    own = {silo.name: _cuts(text) for silo, text in zip(silos, texts, strict=True)}
    method = _method(model, GanTraining(batch=batch, steps=steps), cuts=own)
    pooled = _silos(1, images=8 * batch, size=28, classes=10)[0]
    ratios = []
    for _ in range(1 if args.quick else 3):
        before = _clocked(lambda: _uncut(model, GanTraining(batch=8 * batch, steps=steps), pooled))
        mine = _clocked(lambda: _trained(method, silos))
        after = _clocked(lambda: _uncut(model, GanTraining(batch=8 * batch, steps=steps), pooled))
        ratios.append((before + after) / 2 / mine)
    return {"speed": float(np.median(ratios))}, {"speeds": [round(ratio, 3) for ratio in ratios]}


def _kept(args: argparse.Namespace, name: str, slow: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """What takes many minutes, and nothing else may run meanwhile: like runs, it is not done again under --work."""
    path = Path(args.work) / args.scale / f"{name}.json"
    if not (args.quick or path.exists() or args.budget):
        return {}, {}
    if args.quick or not path.exists():
        figures, beside = slow(args.quick)
        if args.quick:
            return figures, beside
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"figures": figures, "beside": beside | {"commit": bench.commit()}}))
    saved = json.loads(path.read_text())
    return saved["figures"], saved["beside"]


def _leaks(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    measured = leaking.leaks(args)
    return measured.pop("figures"), measured


def _clocked(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _by(kind: str, recipe: str, folder: Path) -> str:
    """The same recipe with another method in the place of huscf: the same networks, steps and batches."""
    path = bench.ROOT / "recipes" / f"{recipe}.toml"
    if kind == "huscf":
        return recipe
    tables = tomllib.loads(path.read_text())
    silos, method = tables["partition"]["silos"], tables["method"]
    beside = {"fedavg": {"keep_optimiser": True}, "central": {"silos": silos, "joined": True}}.get(kind, {})
    kept = {name: method[name] for name in ("rounds", "ema", "training") if name in method}
    kept["model"] = {"kind": "gan", **method.get("model", {})}
    changed = folder.with_name(f"{folder.name}-{kind}.toml")
    changed.parent.mkdir(parents=True, exist_ok=True)
    changed.write_text(tomli_w.dumps(tables | {"method": {"kind": kind, **kept, **beside}}))
    return str(changed)


def _silos(count: int, images: int = 24, size: int = 16, classes: int = 2) -> list[Silo]:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, images, 1, size, size), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, classes, (count, images), generator=rng)
    names = tuple(map(str, range(classes)))
    return [Silo(f"s{i:02}", Images(pixels[i], labels[i], names)) for i in range(count)]


def _method(model: Gan, training: GanTraining, **fields: Any) -> HuSCF:
    return HuSCF.model_validate({"model": model, "training": training, "rounds": 1, "min_head": 0, **fields})


def _trained(method: HuSCF, silos: list[Silo]) -> Experiment:
    experiment = Experiment(method, silos, device="cpu")
    for _ in experiment:
        pass
    return experiment


def _weights(experiment: Experiment) -> dict[str, dict[str, torch.Tensor]]:
    """Both networks of each silo: its ends and the server's middle."""
    middle = strip_prefix(experiment.server.state_dict(), "middle.")
    return {silo.name: middle | strip_prefix(silo.memory, "average.") for silo in experiment.silos}


def _uncut(model: Gan, training: GanTraining, silo: Silo) -> dict[str, torch.Tensor]:
    """Both networks after a round of the plain step."""
    whole, rng = model.build(0), silo.rng(0)
    optimiser = training.optimiser_of(whole, 0)
    for numbers in list(training.batches(len(silo.images), rng)):
        x, labels = silo.images.batch(numbers)
        iteration(model, whole, optimiser, x, labels, torch.randn(len(x), model.latent, generator=rng))
    return dict(whole.state_dict())


def _apart(expected: dict[str, Any], actual: dict[str, torch.Tensor], *, beside_norms: bool = False) -> float:
    """The largest difference of a weight.

    A norm takes away biases that stand before it: their gradient is rounding, of which Adam makes whole steps, and
    running means carry them.
    """
    left_out = ("bias", "running_mean") if beside_norms else ()
    names = [name for name in expected if not name.endswith(left_out)]
    return max(float((expected[name] - actual[name]).abs().max()) for name in names)


def _cuts(text: str) -> LayerCuts:
    """Of four digits: head and tail of the generator, head and tail of the discriminator."""
    a, b, c, d = map(int, text)
    return LayerCuts.model_validate({"generator": {"head": a, "tail": b}, "discriminator": {"head": c, "tail": d}})


def _place(name: str, seed: int) -> str:
    return "-".join(name.replace(",", "").split()) + f"-{seed}"


def _seeds(args: argparse.Namespace) -> list[int]:
    return [0] if args.quick else [int(seed) for seed in args.seeds.split(",")]


if __name__ == "__main__":
    options = {"scale": "small", "seeds": "1", "cases": "", "work": "runs/huscf", "data": "data"}
    bench.main("huscf", measure, BARS, **options, budget=1e9, parallel=2)
