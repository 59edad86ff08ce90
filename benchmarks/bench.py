"""What every benchmark prints: its figures, the bars they are held against, and where and with what it ran."""

from __future__ import annotations

import argparse
import json
import math
import operator
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_COMPARE = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}

Measured = dict[str, Any]
"""``figures`` by id (None: not measured here), and whatever else is worth keeping beside them."""


def main(program: str, measure: Callable[[argparse.Namespace], Measured], bars: dict[str, str], **options: Any) -> None:
    """Parse the common options, measure, print, and with --save keep the result for README."""
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    parser.add_argument("--quick", action="store_true", help="toy size, to see that the program works; not for quoting")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<program>-<scale>.json")
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    told = parser.parse_args()
    began = time.perf_counter()
    result = complete(
        measure(told), bars, "quick" if told.quick else getattr(told, "scale", "small"), time.perf_counter() - began
    )
    if told.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{program}-{result['scale']}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if told.json else _lines(result))


def complete(measured: Measured, bars: dict[str, str], scale: str, seconds: float) -> dict[str, Any]:
    """The result with its verdicts and its circumstances."""
    figures = measured.pop("figures")
    holds = {name: None if figures[name] is None else held(figures[name], bar) for name, bar in bars.items()}
    return {
        "figures": figures,
        "bars": bars,
        "holds": holds,
        **measured,
        "machine": machine(),
        "versions": {name: version(name) for name in ("manyhands", "torch", "diffusers", "torchmetrics", "numpy")},
        "commit": commit(),
        "seconds": round(seconds, 1),
        "scale": scale,
    }


def run_recipe(
    name: str, folder: Path, data: Path, changes: Sequence[str], threads: int | None = None
) -> dict[str, Any]:
    """The report of a ``manyhands run`` of a recipe, by name or file, with the data of this folder; it goes on."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    recipe = folder.with_name(f"{folder.name}.toml")
    shipped = Path(name) if name.endswith(".toml") else ROOT / "recipes" / f"{name}.toml"
    recipe.write_text(shipped.read_text().replace('"data/', f'"{data.resolve()}/'))
    command = [sys.executable, "-m", "manyhands", "run", str(recipe), "--out", str(folder), "--json"]
    command += [part for change in changes for part in ("--set", change)] + ["--resume"] * folder.exists()
    variables = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    said = subprocess.run(command, check=True, env=variables, stdout=subprocess.PIPE, text=True)
    report: dict[str, Any] = json.loads(said.stdout)
    return report


Run = tuple[str, Path, Path, Sequence[str]]
"""A recipe, by name or file, the folder that it runs in, where its data is, and what is changed of it."""


def run_all(runs: Sequence[Run], parallel: int, budget: float = math.inf) -> None:
    """Those that have not ended, so many at once; after ``budget`` seconds no further one is begun."""
    end, threads = time.monotonic() + budget, max(1, (os.cpu_count() or 1) // parallel)

    def one(run: Run) -> None:
        if not (run[1] / "report.json").exists() and time.monotonic() < end:
            run_recipe(*run, threads=threads)

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(one, runs))


def held(figure: float, bar: str) -> bool:
    """Whether a figure meets a bar such as "<= 1.05"."""
    sign, limit = bar.split()
    return bool(_COMPARE[sign](figure, float(limit)))


def machine() -> dict[str, Any]:
    """The processor, its cores as this process may use them, memory and system."""
    model = re.search(
        r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    )
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model.group(1) if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that was measured, marked where the code differs from it; results are no code."""
    said = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return f"{said}-dirty" if said and changed else said or "unknown"


def _git(*told: str) -> str:
    return subprocess.run(["git", *told], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _lines(result: dict[str, Any]) -> str:
    lines = [f"{'id':20}{'figure':>12}  {'bar':10}holds"]
    for name, figure in result["figures"].items():
        shown = "-" if figure is None else f"{figure:.4g}"
        lines.append(f"{name:20}{shown:>12}  {result['bars'].get(name, ''):10}{result['holds'].get(name)}")
    return "\n".join(lines)
