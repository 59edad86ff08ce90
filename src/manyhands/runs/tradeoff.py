"""The trade-off between quality, privacy and work over the cuts of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manyhands.errors import RunFolderError
from manyhands.evaluation import plots
from manyhands.files.strict_json import finite_json
from manyhands.files.write import replace_file
from manyhands.runs.audit import audit
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.sweep import INDEX

if TYPE_CHECKING:
    from manyhands.audit.effort import Effort


def tradeoff(folder: Path, effort: Effort | None = None) -> list[dict[str, float | None]]:
    """Compare the cuts of a sweep by quality, disclosure and work of a silo; writes tradeoff.json and tradeoff.png.

    The attacks run once, on the first run that releases noised images.
    """
    runs = [run for run in _runs_over_cuts(folder) if run.is_ended and "costs" in run.report]
    inner = [run for run in runs if 0 < _share(run) < 1]
    if not inner:
        raise RunFolderError(f"{folder}: none of its runs that release noised images has finished")
    report = audit(inner[0], sorted({_share(run) for run in inner}), effort)
    rows = [_row([run for run in runs if _share(run) == share], share, report) for share in _shares(runs)]
    plots.tradeoff(folder / "tradeoff.png", rows)
    replace_file(folder / "tradeoff.json", finite_json(rows, indent=1).encode())
    return rows


def _runs_over_cuts(folder: Path) -> list[RunFolder]:
    try:
        index = json.loads((folder / INDEX).read_text())
        return [RunFolder(folder / run["folder"]) for run in index if "method.cut" in run["values"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{folder}: holds no sweep over cuts: {error}") from None


def _shares(runs: Sequence[RunFolder]) -> list[float]:
    return sorted({_share(run) for run in runs})


def _share(run: RunFolder) -> float:
    """The cut of a run as a share of its chain; the lowest if the silos differ."""
    steps = run.recipe["method"]["diffusion"]["schedule"]["steps"]
    return float(min(costs["cut"] for costs in run.report["costs"].values()) / steps)


def _row(runs: Sequence[RunFolder], share: float, audit_report: Mapping[str, Any]) -> dict[str, float | None]:
    """The row of one cut; figures of several seeds are means. At cut 0 everything is given away, at cut 1 nothing."""
    reports = [run.report for run in runs]
    costs = next(iter(reports[0]["costs"].values()))
    cut = next((cut for cut in audit_report["cuts"] if abs(cut["share"] - share) < 1e-9), None)
    scores = cut["one_release"] if cut else None
    chance, best = audit_report["cuts"][0]["one_release"]["identity"]["chance"], None
    if scores:
        best = max(attack["explained"]["value"] for attack in scores["reconstruction"].values())
    fids = [report["metrics"]["fid"] for report in reports if "fid" in report["metrics"]]
    return {
        "cut": share,
        "snr_db": cut["snr_db"] if cut else None,
        "epsilon": scores["guarantee"]["epsilon"] if scores else None,
        "fid": float(np.mean(fids)) if fids else None,
        "fid_deviation": float(np.std(fids, ddof=1)) if len(fids) > 1 else None,
        "fid_real": reports[0]["floor"].get("fid"),
        "explained": best if scores else float(share == 0),
        "picked": scores["identity"]["top_1"]["value"] if scores else 1.0 if share == 0 else chance,
        "of": audit_report["cuts"][0]["one_release"]["identity"]["candidates"],
        "draw_share": costs["draw_flops"] / costs["draw_flops_whole"],
        "train_share": costs["train_flops"] / costs["train_flops_whole"],
    }
