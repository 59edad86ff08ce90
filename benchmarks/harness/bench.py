"""What every benchmark prints: its figures, the bars they are held against, and where and with what it ran."""

from __future__ import annotations

import argparse
import hashlib
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
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from manyhands import __version__

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "benchmarks"
RESULTS = PROGRAMS / "results"
TOY = ("data.limit=300", "evaluation.images=60")
"""What makes a recipe of digits small."""
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
    args = parser.parse_args()
    if args.save and getattr(args, "cases", ""):
        parser.error("--cases writes the files of these cases and measures nothing else; --save is for all of it")
    began = time.perf_counter()
    result = complete(
        measure(args), bars, "quick" if args.quick else getattr(args, "scale", "small"), time.perf_counter() - began
    )
    if args.save and (kept := without_claims(result))["figures"]:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{program}-{result['scale']}.json"
        path.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(result) if args.json else _lines(result))


def without_claims(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what follows from the files of cases: that is made anew of those whenever it is shown."""
    claims = result.get("claims", {})
    kept = {name: value for name, value in result.items() if name not in ("claims", "cases" if claims else "")}
    for part in ("figures", "bars", "holds"):
        kept[part] = {name: value for name, value in result[part].items() if name not in claims}
    return kept


def complete(measured: Measured, bars: dict[str, str], scale: str, seconds: float) -> dict[str, Any]:
    """The result with its verdicts and its circumstances; claims of cases come with theirs."""
    figures, claims = measured.pop("figures"), measured.get("claims", {})
    bars = {name: bar for name, bar in bars.items() if name in figures}
    holds = {name: None if figures[name] is None else held(figures[name], bar) for name, bar in bars.items()}
    return {
        "figures": figures | {name: claim["figure"] for name, claim in claims.items()},
        "bars": bars | {name: claim["bar"] for name, claim in claims.items()},
        "holds": holds | {name: claim["holds"] for name, claim in claims.items()},
        **measured,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "seconds": round(seconds, 1),
        "scale": scale,
    }


def run_recipe(
    name: str, folder: Path, data: Path, changes: Sequence[str], threads: int | None = None
) -> dict[str, Any]:
    """The report of a ``manyhands run`` of a recipe, by name or file, with the data of this folder; it goes on.

    Which commit trains it is written down beside the folder before it begins, and again by whoever goes on.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    recipe = folder.with_name(f"{folder.name}.toml")
    shipped = Path(name) if name.endswith(".toml") else ROOT / "recipes" / f"{name}.toml"
    note = _note(folder)
    note.write_text(json.dumps(_begun(folder, shipped, changes), indent=1))
    recipe.write_text(shipped.read_text().replace('"data/', f'"{data.resolve()}/'))
    words = ["run", str(recipe), "--out", str(folder), "--json"]
    words += [part for change in changes for part in ("--set", change)] + ["--resume"] * folder.exists()
    report: dict[str, Any] = json.loads(manyhands(words, threads))
    return report


def one_thread_each() -> None:
    """Give this process, and all that it starts, one thread: with more, parties that share two cores wait for them."""
    import torch

    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def manyhands(words: Sequence[str], threads: int | None) -> str:
    """What the command prints, in a process of its own."""
    variables = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [sys.executable, "-m", "manyhands", *words]
    return subprocess.run(command, check=True, env=variables, stdout=subprocess.PIPE, text=True).stdout


def began(folder: Path) -> dict[str, Any]:
    """What was written down when a run began; of one that is older than these notes, that its commit is unknown."""
    note = _note(folder)
    if not note.exists():
        return {"name": None, "sha256": None, "changes": [], "commits": [None], "date": None, "machine": None}
    beginning: dict[str, Any] = json.loads(note.read_text())
    return beginning


def _begun(folder: Path, shipped: Path, changes: Sequence[str]) -> dict[str, Any]:
    earlier = began(folder)["commits"] if folder.exists() else []
    return {
        "name": shipped.stem,
        "sha256": hashlib.sha256(shipped.read_bytes()).hexdigest()[:16],
        "changes": list(changes),
        "commits": [*earlier, commit()],
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }


def _note(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-begun.json")


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


def versions() -> dict[str, str]:
    """What figures depend on beside the code."""
    names = ("torch", "diffusers", "torchmetrics", "numpy")
    return {"manyhands": __version__, **{name: version(name) for name in names}}


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


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _lines(result: dict[str, Any]) -> str:
    lines = [f"{'id':20}{'figure':>12}  {'bar':10}holds"]
    for name, figure in result["figures"].items():
        shown = "-" if figure is None else f"{figure:.4g}"
        lines.append(
            f"{name:20}{shown:>12}  {result['bars'].get(name, ''):10}{result['holds'].get(name)}{_of(result, name)}"
        )
    return "\n".join(lines)


def _of(result: dict[str, Any], name: str) -> str:
    """Of how many seeds a figure is, and between what it lies."""
    claim = result.get("claims", {}).get(name)
    if not claim or not claim["seeds"]:
        return ""
    ends = " ({:.4g} to {:.4g})".format(*claim["interval"]) if claim["interval"] else ""
    return f"  {len(claim['seeds'])} seed{'s' * (len(claim['seeds']) > 1)}{ends}"
