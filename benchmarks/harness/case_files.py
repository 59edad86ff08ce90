"""A small committed file for each finished run, and what several of them say together.

``benchmarks/results/cases/<program>-<scale>/<case>-<seed>.json`` holds the figures of one run, the recipe and what was
changed of it, the commit that trained it and the one that measured it. Tables are made of these files alone, so that
one may be of runs of several days.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import bench

FOLDER = bench.RESULTS / "cases"
CONFIDENCE = 0.95

Case = dict[str, Any]
"""What a file says: ``figures``, ``recipe``, ``trained``, ``measured``, ``seconds``, ``machine``, ``versions``."""
Table = Mapping[str, Mapping[int, Case]]
"""Files by case and seed."""


@dataclass(frozen=True)
class Figure:
    """A figure, the seeds that it is of, and the 95 % interval of what it is the mean of; one seed has no interval.

    A figure of no seed is the same for all of them, as bytes are, or was measured in one run. ``fewest`` is the least
    number of seeds that any case has of which this one is the worst.
    """

    value: float
    seeds: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None
    fewest: int = 0


def keep(root: Path, program: str, scale: str, case: str, seed: int, record: Mapping[str, Any]) -> Path:
    """Write the file of a finished run: ``record`` has its figures, recipe, who trained it, and its circumstances."""
    measured = {"commit": bench.commit(), "date": today()}
    path = root / f"{program}-{scale}" / f"{slug(case)}-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"program": program, "scale": scale, "case": case, "seed": seed, **record, "measured": measured}
    path.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n")
    return path


def read(root: Path, program: str, scale: str) -> dict[str, dict[int, Case]]:
    """All files of a program, by case and seed."""
    cases: dict[str, dict[int, Case]] = {}
    for path in sorted((root / f"{program}-{scale}").glob("*.json")):
        case: Case = json.loads(path.read_text())
        cases.setdefault(case["case"], {})[case["seed"]] = case
    return {name: dict(sorted(seeds.items())) for name, seeds in cases.items()}


def of_run(folder: Path, figures: Mapping[str, Any], report: Mapping[str, Any]) -> Case:
    """What a file has of a ``manyhands run`` that ``bench.run_recipe`` began in this folder."""
    began = bench.began(folder)
    commits = list(dict.fromkeys(began["commits"]))
    unknown = None in commits or not commits
    trained = {"commit": None if unknown else ", ".join(commits), "date": began["date"]}
    if unknown:
        trained["note"] = "begun by a commit that was not recorded"
    return {
        "figures": dict(figures),
        "recipe": {name: began[name] for name in ("name", "sha256", "changes")},
        "trained": trained,
        "seconds": round(report["seconds"], 1),
        "machine": began["machine"],
        "versions": report["versions"],
    }


def of_here(figures: Mapping[str, Any], seconds: float, recipe: Path | None = None) -> Case:
    """What a file has of what this very process trained."""
    source = {} if recipe is None else {"name": recipe.stem, "sha256": digest(recipe.read_text()), "changes": []}
    return {
        "figures": dict(figures),
        "recipe": source,
        "trained": {"commit": bench.commit(), "date": today()},
        "seconds": round(seconds, 1),
        "machine": bench.machine(),
        "versions": bench.versions(),
    }


def asked(wanted: str, every: Iterable[str]) -> list[str]:
    """The cases that were asked for, ``a;b``, or all of them."""
    known, names = list(every), [name.strip() for name in wanted.split(";") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"--cases {unknown[0]}: is none of {'; '.join(known)}")
    return names or known


def slug(case: str) -> str:
    """The name of a case as a file may have it."""
    return re.sub(r"[^a-z0-9.]+", "-", case.lower()).strip("-")


def digest(text: str) -> str:
    """The first letters of the hash of a recipe."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def today() -> str:
    """The date, in UTC."""
    return datetime.now(UTC).date().isoformat()


def values(table: Table, case: str, name: str) -> dict[int, float]:
    """A figure of a case by seed, where it is known of that seed."""
    files = table.get(case, {})
    return {seed: each["figures"][name] for seed, each in files.items() if each["figures"].get(name) is not None}


def first(table: Table, case: str, name: str) -> Any:
    """A figure of the first seed that has it; None where none has."""
    return next(iter(values(table, case, name).values()), None)


def mean(table: Table, case: str, name: str) -> Figure | None:
    """The mean over the seeds; of older runs some figures are known as the mean over their seeds alone."""
    known, files = values(table, case, name), table.get(case, {})
    if len(known) == len(files) and known:
        return over(known)
    means = [each.get("mean_over_seeds", {}).get(name) for each in files.values()]
    return Figure(means[0], tuple(files)) if means and means[0] is not None else None


def over(by_seed: Mapping[int, float], *, positive: bool = False) -> Figure:
    """The mean over seeds, and its interval by Student's t; of what is ``positive``, as FID, on the logarithms."""
    numbers = list(by_seed.values())
    ends = _multiplied(numbers) if positive else interval(numbers)
    return Figure(sum(numbers) / len(numbers), tuple(by_seed), *ends)


def ratio(table: Table, name: str, case: str, *others: str) -> Figure | None:
    """The mean over the common seeds of a figure, against the least such mean of the other cases.

    The interval is by Student's t of the logarithms of the ratios that seeds have one by one, to that same case: a
    ratio is as easily halved as doubled, and is never below zero.
    """
    each = [values(table, one, name) for one in (case, *others)]
    common = sorted(set.intersection(*map(set, each)))
    if not common:
        return None
    mine, *theirs = [{seed: one[seed] for seed in common} for one in each]
    least = min(theirs, key=lambda one: sum(one.values()))
    ends = _multiplied([mine[seed] / least[seed] for seed in common])
    return Figure(sum(mine.values()) / sum(least.values()), tuple(common), *ends)


def above(table: Table, name: str, case: str, other: str) -> Figure | None:
    """By how much a figure of a case is above that of another: the mean over their common seeds."""
    mine, theirs = values(table, case, name), values(table, other, name)
    common = sorted(mine.keys() & theirs.keys())
    return over({seed: mine[seed] - theirs[seed] for seed in common}) if common else None


def worst(figures: Sequence[Figure | None], which: Callable[..., Figure] = max) -> Figure | None:
    """The worst of several cases, with its own interval; None while one of them is not measured."""
    known = [figure for figure in figures if figure is not None]
    if not known or len(known) < len(figures):
        return None
    return replace(which(known, key=lambda figure: figure.value), fewest=min(len(figure.seeds) for figure in known))


def interval(numbers: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of a mean by Student's t; none of one number."""
    from scipy.stats import t

    count = len(numbers)
    if count < 2:
        return None, None
    middle = sum(numbers) / count
    deviation = math.sqrt(sum((each - middle) ** 2 for each in numbers) / (count - 1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return middle - half, middle + half


def _multiplied(numbers: Sequence[float]) -> tuple[float | None, float | None]:
    """The interval of numbers that are above zero: on their logarithms."""
    low, high = interval([math.log(each) for each in numbers])
    return (None, None) if low is None or high is None else (math.exp(low), math.exp(high))
