"""What is compared: a recipe with its run, or with its runs with several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from manyhands.runs.recipe_difference import difference
from manyhands.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Entry:
    """One recipe with its run, or its runs with several seeds.

    Args:
        name: The name by which it is shown.
        runs: The run folders, one for each seed.
    """

    name: str
    runs: tuple[RunFolder, ...]

    @cached_property
    def reports(self) -> list[dict[str, Any]]:
        """The reports of the runs."""
        return [run.report for run in self.runs]

    def values(self, name: str) -> list[float]:
        """A figure or a cost of each run; empty where a run lacks it."""
        if name == "flops_silo":
            return [float(np.mean(list(report["flops_silos"].values()))) for report in self.reports]
        values = [report["metrics"].get(name, report.get(name)) for report in self.reports]
        return [] if None in values else [float(value) for value in values]

    def mean(self, name: str) -> float | None:
        """The mean over the seeds."""
        values = self.values(name)
        return float(np.mean(values)) if values else None

    def spread(self, name: str) -> float | None:
        """The standard deviation over the seeds of training; None with one run."""
        values = self.values(name)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def within(self, name: str) -> float | None:
        """The deviation within a single run, over its sets of samples or random halves of one."""
        spread: dict[str, float] = self.reports[0].get("evaluation", {}).get("spread", {})
        return spread.get(name)

    @property
    def first_name(self) -> str:
        """The name of the first run, whose pictures are shown."""
        return self.name if len(self.runs) == 1 else f"{self.name}, seed {self.runs[0].recipe.get('seed')}"


def entries_of(runs: Sequence[RunFolder]) -> list[Entry]:
    """Group the runs: those whose recipes differ only in name and seed are one entry."""
    groups: list[list[RunFolder]] = []
    for run in runs:
        groups_alike = (
            group
            for group in groups
            if not difference(_recipe_without_seed(group[0]), _recipe_without_seed(run))
            and run.recipe.get("seed") not in (member.recipe.get("seed") for member in group)
        )
        group_of_run = next(groups_alike, None)
        if group_of_run is None:
            groups.append([run])
        else:
            group_of_run.append(run)
    names = [group[0].path.resolve().name if len(group) == 1 else group[0].recipe["name"] for group in groups]
    if len(set(names)) < len(names):
        names = [str(group[0].path) for group in groups]
    return [Entry(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def _recipe_without_seed(run: RunFolder) -> dict[str, Any]:
    return {name: value for name, value in run.recipe.items() if name not in ("name", "seed")}
