"""The figures of a comparison: quality over what it cost, and the runs' pictures side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from manyhands.evaluation import plots
from manyhands.report.quality import NAMES, curve
from manyhands.runs.compare_entry import Entry
from manyhands.runs.round import Round
from manyhands.runs.run_folder import RunFolder


def draw(entries: Sequence[Entry], by: str, out: Path) -> list[Path]:
    """Draw quality over rounds, bytes and work, and by silo, and the runs' pictures side by side; return the files."""
    paths, label = [], NAMES[by]
    at_end = [entry.reports[0].get("at_end", {}) for entry in entries]
    same_protocol = all(silos.get("protocol") == at_end[0].get("protocol") for silos in at_end)
    for axis, name in (("rounds", "round"), ("bytes", "bytes sent and received"), ("flops", "FLOP of a silo")):
        lines = {entry.name: _mean_curve(entry.runs, by, axis) for entry in entries} if same_protocol else {}
        if any(lines.values()):
            floor = at_end[0].get("floor", {}).get(by)
            plots.against(out / f"quality-{axis}.png", lines, name, label, floor)
            paths.append(out / f"quality-{axis}.png")
    groups = {entry.name: _mean_of_silos(entry.reports, by) for entry in entries}
    if any(groups.values()):
        plots.silos(out / "silos.png", {name: silos for name, silos in groups.items() if silos}, label)
        paths.append(out / "silos.png")
    for name in ("partition", "samples"):
        pictures = {entry.first_name: entry.runs[0].figures / f"{name}.png" for entry in entries}
        existing = {entry: path for entry, path in pictures.items() if path.exists()}
        if existing:
            plots.side_by_side(out / f"{name}.png", existing)
            paths.append(out / f"{name}.png")
    return paths


def _mean_curve(runs: Sequence[RunFolder], name: str, axis: str) -> list[tuple[float, float]]:
    """The mean over the seeds, at the rounds that all of them measured."""
    curves = [_curve(run, name, axis) for run in runs]
    return [(float(x), float(y)) for x, y in (np.mean(points, axis=0) for points in zip(*curves, strict=False))]


def _mean_of_silos(reports: Sequence[Mapping[str, Any]], name: str) -> dict[str, tuple[float, float]]:
    """The mean over the seeds, of the silos that all of them measured."""
    figures_of_runs = [_silos(report, name) for report in reports]
    common = [silo for silo in figures_of_runs[0] if all(silo in figures_of_run for figures_of_run in figures_of_runs)]
    means = {silo: np.mean([figures_of_run[silo] for figures_of_run in figures_of_runs], axis=0) for silo in common}
    return {silo: (float(mean), float(floor)) for silo, (mean, floor) in means.items()}


def _curve(run: RunFolder, name: str, axis: str) -> list[tuple[float, float]]:
    """A figure over rounds, or over the bytes or the work until then."""
    rounds = run.rounds
    report = run.report
    spent = list(accumulate(_spent(closed_round, axis, len(report["silos"])) for closed_round in rounds))
    return [(spent[at - 1], value) for at, value in curve(report, rounds, name)]


def _spent(closed_round: Round, axis: str, silos: int) -> float:
    """The bytes of a round, its work as the mean over all silos, including those that rested, or 1 for the round."""
    if axis == "flops":
        return sum(closed_round.flops.values()) / silos
    return closed_round.bytes_up + closed_round.bytes_down if axis == "bytes" else 1


def _silos(report: Mapping[str, Any], name: str) -> dict[str, tuple[float, float]]:
    """A figure of each silo, and the figure of real images."""
    groups = report.get("evaluation", {}).get("groups", {}).get("silos", {})
    return {
        silo: (group["metrics"][name], group["floor"][name])
        for silo, group in groups.items()
        if name in group.get("metrics", {})
    }
