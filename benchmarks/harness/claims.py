"""What is claimed of runs with seeds: their cases, the bars, and each figure as the committed files of cases give it.

Nothing here trains or imports PyTorch, so that tables are made again in a second, wherever the runs were.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from harness import bench, real_claims
from harness.case_files import FOLDER, Figure, Table, above, first, mean, over, ratio, read, values, worst
from harness.settings_tried import CODECS, SKEWED, Changes

COLLAFUSE_BARS = {
    "quality_long": "<= 1.15", "quality_alone": "<= 1", "quality_authors": "<= 1",
    "silo_compute": "<= 1", "silo_compute_small": "<= 0.1", "silo_compute_small_fid": "<= 1.1",
}  # fmt: skip
FEDERATED_BARS = {
    "vanilla_iid": "<= 1.1", "central": "", "beats_local": ">= 1.5", "beats_local_together": ">= 1.5", "prox": "<= 1",
    "quant8_bytes": ">= 3.9", "quant8_fid": "<= 1.05", "quant4_bytes": ">= 7.5", "quant4_fid": "<= 1.1",
    "stretch_bytes": ">= 20", "stretch_fid": "<= 1.15",
}  # fmt: skip
HUSCF_BARS = {
    "clusters": ">= 1", "clusters_three": ">= 0.9", "quality_small": "<= 2", "quality_small_rivals": ">= 0",
    "quality_paper": ">= 0", "traffic": ">= 3.8", "traffic_quality": "<= 1",
}  # fmt: skip
BARS = {
    "collafuse": COLLAFUSE_BARS,
    "federated_diffusion": FEDERATED_BARS,
    "huscf": HUSCF_BARS,
    "fifty_silos": {"fifty_silos": "<= 1.1"},
    "digits": {"digits": ">= 0.95", "train_and_sample_seconds": "<= 90"},
    "real_training": real_claims.BARS,
    "convergence": {"contraction": "== 1", "bias_falls": "== 1", "rounding_8": "<= 0.1", "rounding_4": "<= 0.1"},
}
"""The bars of each program's claims; an empty one: shown, and no bar was set."""

INNER = (0.2, 0.4, 0.6)
SAFE = 0.937
"""The cut that is recommended: at it a release is picked out of 1,000 images in less than one case of a hundred."""
EQUAL = 20
"""The steps of a silo in a round of ``fedavg`` with which five silos see as many images as the server does."""
SMALL = 0.2
"""The cut at which a silo with a light network and few steps is held against one with the server's."""

LONG = {"small": (6, "steps=50"), "paper": (12, "epochs=5"), "quick": (2, "steps=4")}
"""Rounds, and what each is, where silos train long between them: as much in all."""
ALONE = {"small": ("method.training.learning_rate=2e-3",), "paper": (), "quick": ()}
"""What is better for those who average nothing: on seed 0, the joined baseline came to FID 2.2 at a rate of 2e-3 and
to 2.8 at 6e-3, ten silos to 2.4 at 6e-3 and to 3.2 at 4e-3."""
PULLS = [("coupled", 0.1), ("coupled", 1.0), ("decoupled", 10.0)]
OWN = "skewed local, a silo's own"
"""The runs of "skewed local" once more: each silo's generator is asked for every class."""

RIVALS = ("fedavg", "mdgan", "splitgan", "pflgan", "hflgan", "local")
THEIRS = {"1": {"": 97.5}, "3": {"digits": 96.8, "clothes": 82.9}, "5": {"digits": 96.1, "clothes": 81.4}}
"""The accuracies, in per cent, of classifiers trained on samples of the authors' generators, by scenario and domain."""


def collafuse_cases(_: str) -> dict[str, Changes]:
    """Cut 0 is the server's network alone, cut 1 leaves every silo alone."""
    light = ("method.silo_model={widths=[8]}", "method.distil={steps=2,rounds=8}", "method.training.learning_rate=4e-3")
    return {
        "global": ("method.cut=0",),
        **{f"exact {cut}": (f"method.cut={cut}",) for cut in (*INNER, SAFE)},
        "alone": ("method.cut=1",),
        **{f"authors {cut}": (f"method.cut={cut}", "method.mode=authors") for cut in INNER},
        "fedavg": (f"method.training.steps={EQUAL}",),
        "fedavg long": (),
        "nested 0.4": ("method.cut=0.4", "method.mode=nested"),
        "light 0.2": ("method.cut=0.2", *light),
        "withheld 0.4": ("method.cut=0.4", "method.labels=withhold"),
    }


def federated_cases(scale: str) -> dict[str, Changes]:
    """Federated averaging, its baselines, codecs and proximal terms."""
    rounds, length = LONG[scale]
    long = (SKEWED, f"method.rounds={rounds}", f"method.training.{length}", "method.ema=0")
    pulls = {
        f"skewed long, {mode} mu {mu:g}": (*long, f"method.proximal={mu}", f"method.proximal_mode={mode}")
        for mode, mu in PULLS
    }
    codecs = {name: (f"method.up={{{codec}}}", f"method.down={{{codec}}}") for name, codec in CODECS.items()}
    return {
        "vanilla": (),
        "central-joined": ("method.kind=central", "method.joined=true", *ALONE[scale]),
        "central": ("method.kind=central", *ALONE[scale]),
        **codecs,
        "skewed": (SKEWED,),
        "skewed local": (SKEWED, "method.kind=local", *ALONE[scale]),
        "skewed long": long,
        **pulls,
    }


def huscf_cases(scale: str) -> dict[str, tuple[str, str, Changes]]:
    """The recipe of each case, the method that runs it, and what is told to it beside."""
    if scale == "quick":
        return {"huscf 3": ("digits-huscf", "huscf", ()), "fedavg 4": ("digits-huscf", "fedavg", ())}
    if scale == "paper":
        return {f"huscf {n}": (f"huscf-{n}", "huscf", ()) for n in THEIRS}
    both = {f"{kind} {n}": (f"huscf-{n}-small", kind, ()) for n, kind in product("134", ("huscf", "central"))}
    rivals = {f"{kind} 4": ("huscf-4-small", kind, ()) for kind in RIVALS}
    bits = {f"huscf 3, {bits} bits": ("huscf-3-small", "huscf", (f"method.bits={bits}",)) for bits in (16, 8)}
    three = ("method.rounds=6", "partition.lacks=[[0,0.25],[2,0.3],[3,0.1],[4,0.1]]", "evaluation.images=0")
    return both | rivals | bits | {"three domains": ("huscf-6-small", "huscf", three)}


def collafuse(table: Table, _: str) -> dict[str, Figure | None]:
    """Each is the worst of its cuts."""

    def against(cuts: tuple[float, ...], name: str) -> Figure | None:
        return worst([ratio(table, "fid", f"exact {cut}", name.format(cut)) for cut in cuts])

    def share(cut: float) -> Figure | None:
        costs = first(table, f"exact {cut}", "costs")
        return Figure(costs["draw_flops"] / costs["draw_flops_whole"] / cut) if costs else None

    light, plain = (first(table, f"{name} {SMALL}", "costs") for name in ("light", "exact"))
    return {
        "quality_long": against((0.2, 0.4), "fedavg long"),
        "quality_alone": against(INNER, "alone"),
        "quality_authors": against(INNER, "authors {}"),
        "silo_compute": worst([share(cut) for cut in INNER]),
        "silo_compute_small": Figure(light["draw_flops"] / plain["draw_flops"]) if light and plain else None,
        "silo_compute_small_fid": ratio(table, "fid", f"light {SMALL}", f"exact {SMALL}"),
    }


def federated(table: Table, _: str) -> dict[str, Figure | None]:
    """FIDs against each other; bytes both ways as counted on the wire, against float32."""

    def fewer(case: str) -> Figure | None:
        plain, mine = first(table, "vanilla", "bytes"), first(table, case, "bytes")
        return Figure(plain / mine) if plain and mine else None

    pulled = [ratio(table, "fid", case, "skewed long") for case in table if " mu " in case]
    figures = {
        "vanilla_iid": ratio(table, "fid", "vanilla", "central-joined"),
        "central": ratio(table, "fid", "vanilla", "central"),
        "beats_local": ratio(table, "fid", OWN, "skewed"),
        "beats_local_together": ratio(table, "fid", "skewed local", "skewed"),
        "prox": worst(pulled, min),
    }
    for id_, case in (
        ("quant8", "updates, 8 bits"),
        ("quant4", "updates, 4 bits"),
        ("stretch", "updates, 2 bits near"),
    ):
        figures |= {f"{id_}_bytes": fewer(case), f"{id_}_fid": ratio(table, "fid", case, "vanilla")}
    return figures


def huscf(table: Table, scale: str) -> dict[str, Figure | None]:
    """Accuracies in points; the agreement of clusters is the least over the seeds."""

    def agreement(case: str) -> Figure | None:
        known = values(table, case, "agreement")
        return Figure(min(known.values()), tuple(known)) if known else None

    whole, eighth = (first(table, case, "passed") for case in ("huscf 3", "huscf 3, 8 bits"))
    return {
        "clusters": agreement("huscf 3"),
        "clusters_three": agreement("three domains"),
        "quality_small": worst([above(table, "cas", f"central {n}", f"huscf {n}") for n in "13"]),
        "quality_small_rivals": worst(
            [above(table, "cas", "huscf 4", f"{kind} 4") for kind in RIVALS if kind != "local"], min
        ),
        "quality_paper": _against_theirs(table) if scale == "paper" else None,
        "traffic": Figure(whole / eighth) if whole and eighth else None,
        "traffic_quality": above(table, "cas", "huscf 3", "huscf 3, 8 bits"),
    }


def _against_theirs(table: Table) -> Figure | None:
    """The least that an accuracy is above the authors', in points."""
    gaps = []
    for n, theirs in THEIRS.items():
        for domain, points in theirs.items():
            mine = values(table, f"huscf {n}", f"cas {domain}".strip())
            gaps.append(over({seed: each - points for seed, each in mine.items()}) if mine else None)
    return worst(gaps, min)


def fifty_silos(table: Table, _: str) -> dict[str, Figure | None]:
    """Memory, of one run each."""
    fifty, ten = (first(table, case, "peak_memory") for case in ("50 silos", "10 silos"))
    return {"fifty_silos": Figure(fifty / ten) if fifty and ten else None}


def digits(table: Table, _: str) -> dict[str, Figure | None]:
    """The worst of the seeds; the interval is that of their mean."""
    figures: dict[str, Figure | None] = {}
    for id_, name, which in (("digits", "recognised", min), ("train_and_sample_seconds", "seconds", max)):
        known = values(table, "digits-fedavg", name)
        mean_of = over(known) if known else None
        figures[id_] = mean_of and Figure(which(known.values()), mean_of.seeds, mean_of.low, mean_of.high)
    return figures


def convergence(table: Table, _: str) -> dict[str, Figure | None]:
    """Shares of what is as theory has it, over all seeds; errors of ``updates`` against those of ``weights``."""
    case = "quadratics"
    return {
        "contraction": mean(table, case, "contraction"),
        "bias_falls": mean(table, case, "bias_falls"),
        **{f"rounding_{bits}": _rounding(table, bits) for bits in (8, 4)},
    }


def _rounding(table: Table, bits: int) -> Figure | None:
    files = table.get("quadratics", {})
    kinds = {kind: f"{kind}, {bits} bits" for kind in ("updates, stochastic, with feedback", "weights, nearest")}
    both = {
        kind: {seed: {"figures": {"error": each["figures"]["errors"][name]}} for seed, each in files.items()}
        for kind, name in kinds.items()
    }
    return ratio(both, "error", *kinds) if files else None


OF: dict[str, Callable[[Table, str], dict[str, Figure | None]]] = {
    "collafuse": collafuse,
    "federated_diffusion": federated,
    "huscf": huscf,
    "fifty_silos": fifty_silos,
    "digits": digits,
    "convergence": convergence,
    "real_training": real_claims.figures,
}


def rows(program: str, scale: str, root: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """A program's claims as it prints them: figure, bar, whether it holds, seeds and interval."""
    figures = OF[program](read(root, program, scale), scale)
    return {
        name: {
            "figure": figure and figure.value,
            "bar": bar,
            "holds": None if figure is None or not bar else bench.held(figure.value, bar),
            "seeds": list(figure.seeds) if figure else [],
            "fewest": figure.fewest if figure else 0,
            "interval": [figure.low, figure.high] if figure and figure.low is not None else None,
        }
        for name, bar in BARS[program].items()
        for figure in [figures.get(name)]
    }
