"""Runs side by side: one table, and figures of quality against what it cost."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from manyhands.errors import ProtocolError, RecipeError
from manyhands.evaluation import figures, verdict
from manyhands.evaluation.evaluator import AT_ONCE
from manyhands.evaluation.metrics import LOWER_IS_BETTER
from manyhands.files.strict_json import finite_json
from manyhands.files.write import disk_errors, replace_file
from manyhands.formatting import count_text, size_text
from manyhands.report.markup import number
from manyhands.report.page import NAMES, curve, sampling_words
from manyhands.runs.run_folder import Round, RunFolder, difference
from manyhands.spec import suggest

COSTS = {
    "rounds": "rounds", "images_seen": "images seen", "bytes_up": "sent up", "bytes_down": "sent down",
    "flops_silo": "FLOP of a silo (mean)", "flops_server": "FLOP of the server", "seconds": "seconds",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One recipe: its run, or its runs with several seeds."""

    name: str
    runs: tuple[RunFolder, ...]

    @cached_property
    def reports(self) -> list[dict[str, Any]]:
        """What the runs reported."""
        return [run.report for run in self.runs]

    def values(self, name: str) -> list[float]:
        """A figure or a cost of each run."""
        if name == "flops_silo":
            return [float(np.mean(list(report["flops_silos"].values()))) for report in self.reports]
        found = [report["metrics"].get(name, report.get(name)) for report in self.reports]
        return [] if None in found else [float(value) for value in found]

    def mean(self, name: str) -> float | None:
        """The mean over the seeds."""
        values = self.values(name)
        return float(np.mean(values)) if values else None

    def spread(self, name: str) -> float | None:
        """The standard deviation over the seeds of training; None of one run."""
        values = self.values(name)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def within(self, name: str) -> float | None:
        """The deviation that a single run found, over its draws or halves of its draw."""
        spread: dict[str, float] = self.reports[0].get("evaluation", {}).get("spread", {})
        return spread.get(name)


class Comparison:
    """Runs, best first by one figure; ``ranked`` is false where they were measured by different protocols."""

    def __init__(self, folders: Sequence[Path], by: str = "fid", *, unranked: bool = False) -> None:
        paths = [path.resolve() for path in folders]
        if twice := {path for path in paths if paths.count(path) > 1}:
            raise RecipeError(f"{min(twice)}: is given twice")
        self.entries = _entries([RunFolder(path) for path in folders])
        self.by = by
        self.differs = self._difference()
        known = [name for name in NAMES if any(entry.values(name) for entry in self.entries)]
        if by not in known:
            raise RecipeError(f"--by {by}: none of the runs has it; {suggest(by, known)}")
        self.several = any(len(entry.runs) > 1 for entry in self.entries)
        self.ranked = not self.differs
        if self.differs and not unranked:
            raise ProtocolError(
                f"{self.differs}: figures of different protocols cannot be ranked; measure alike with `manyhands "
                "evaluate`, or --unranked shows them side by side"
            )
        if self.ranked:
            self.entries.sort(key=self._rank)
        self.shown = [*known, *COSTS]

    def table(self) -> list[list[str]]:
        """A row for each figure and cost, a column for each entry; the best of each figure has a star."""
        heads = ["", *[entry.name for entry in self.entries], "real images"]
        return [
            heads,
            *[self._row(name) for name in self.shown],
            ["seeds", *[str(len(e.runs)) for e in self.entries], ""],
        ]

    def verdicts(self) -> list[str]:
        """How far each entry is from real images, in words; of several seeds, by their mean."""
        told = {entry.name: self._words(entry) for entry in self.entries}
        return [f"{name}: {words}" for name, words in told.items() if words]

    def _words(self, entry: Entry) -> str:
        return verdict.words(*self._against(entry), few=entry.reports[0].get("evaluation", {}).get("few", False))

    def _against(self, entry: Entry) -> tuple[dict[str, float | None], dict[str, float]]:
        floor: dict[str, float] = entry.reports[0]["floor"]
        return {"fid": entry.mean("fid")}, floor

    def _doubted(self, entry: Entry, name: str) -> bool:
        """Whether noise could have the figure, as far from real images as the entry is."""
        return name in verdict.MISLEADING and verdict.is_far(*self._against(entry))

    def _any_doubted(self) -> bool:
        return any(self._doubted(entry, name) for entry in self.entries for name in verdict.MISLEADING)

    def markdown(self) -> str:
        """The table as Markdown, under what it was measured by."""
        heads, *rows = self.table()
        cells = [[cell.replace("|", "\\|") for cell in row] for row in [heads, ["---"] * len(heads), *rows]]
        lines = [*[f"* {line}" for line in self.verdicts()], "", *[f"| {' | '.join(row)} |" for row in cells]]
        return "\n".join([*lines, "", self.note(), ""])

    def csv(self) -> str:
        """A row for each entry, with means, spreads and floors."""
        out = io.StringIO()
        records = self.records()
        names = list(dict.fromkeys(name for record in records for name in record))
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return out.getvalue()

    def records(self) -> list[dict[str, Any]]:
        """Each entry with its figures as numbers."""
        return [
            {"name": entry.name, "runs": " ".join(str(run.path) for run in entry.runs), "seeds": len(entry.runs)}
            | {"rank": rank if self.ranked else None}
            | {name: entry.mean(name) for name in self.shown}
            | {f"{name}_spread": self._spread(entry, name) for name in self.shown if name in NAMES}
            | {f"{name}_floor": entry.reports[0]["floor"].get(name) for name in self.shown if name in NAMES}
            | {"words": self._words(entry)}
            for rank, entry in enumerate(self.entries, 1)
        ]

    def note(self) -> str:
        """By which protocol, or why there is no rank."""
        if not self.ranked:
            return f"Not ranked: {self.differs}."
        told, *others = [entry.reports[0]["evaluation"]["protocol"] for entry in self.entries]
        ways = dict.fromkeys(sampling_words(each) for each in (told, *others))
        told_spread = self.entries[0].reports[0]["evaluation"]["spread_of"]
        return (
            f"Best first by {NAMES[self.by]}; * is the best of a row, be it by less than the deviations, which are "
            f"over {'the seeds of training' if self.several else told_spread}. "
            f"{told['images']:,} samples against "
            f"{told['reference']:,} training images, features of {told['features']}; samples: {' or '.join(ways)}."
            + " Figures in brackets are not to be quoted: their samples are too far from the floor."
            * self._any_doubted()
        )

    def write(self, out: Path) -> list[Path]:
        """The table as Markdown, CSV and JSON, and the figures."""
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        told = finite_json({"note": self.note(), "runs": self.records()}, indent=1)
        texts = {"table.md": self.markdown(), "table.csv": self.csv(), "table.json": told}
        for name, text in texts.items():
            replace_file(out / name, text.encode())
        return [out / name for name in texts] + self._draw(out)

    def _draw(self, out: Path) -> list[Path]:
        drawn, label = [], NAMES[self.by]
        ended = [entry.reports[0].get("at_end", {}) for entry in self.entries]
        alike = all(told.get("protocol") == ended[0].get("protocol") for told in ended)
        for axis, name in (("rounds", "round"), ("bytes", "bytes sent and received"), ("flops", "FLOP of a silo")):
            lines = {entry.name: _mean_curve(entry.runs, self.by, axis) for entry in self.entries} if alike else {}
            if any(lines.values()):
                floor = ended[0].get("floor", {}).get(self.by)
                figures.against(out / f"quality-{axis}.png", lines, name, label, floor)
                drawn.append(out / f"quality-{axis}.png")
        groups = {entry.name: _mean_of_silos(entry.reports, self.by) for entry in self.entries}
        if any(groups.values()):
            figures.silos(out / "silos.png", {name: told for name, told in groups.items() if told}, label)
            drawn.append(out / "silos.png")
        for name in ("partition", "samples"):
            found = {_first_of(entry): entry.runs[0].figures / f"{name}.png" for entry in self.entries}
            there = {entry: path for entry, path in found.items() if path.exists()}
            if there:
                figures.side_by_side(out / f"{name}.png", there)
                drawn.append(out / f"{name}.png")
        return drawn

    def _row(self, name: str) -> list[str]:
        means = [entry.mean(name) for entry in self.entries]
        best = self._best(
            name, [None if self._doubted(e, name) else m for e, m in zip(self.entries, means, strict=True)]
        )
        cells = []
        for entry, mean in zip(self.entries, means, strict=True):
            spread = self._spread(entry, name) if name in NAMES else None
            told = _cost(name, mean) if name in COSTS else number(mean)
            told = f"({told})" if self._doubted(entry, name) else told
            cells.append(
                told
                + (f" ± {number(spread)}" if spread is not None else "")
                + (" *" if mean is not None and mean == best else "")
            )
        floors = [report["floor"][name] for e in self.entries for report in e.reports if name in report["floor"]]
        return [{**NAMES, **COSTS}[name], *cells, number(floors[0]) if floors and self.ranked else ""]

    def _spread(self, entry: Entry, name: str) -> float | None:
        """Of one kind in the whole table: over the seeds of training, if any entry has several."""
        return entry.spread(name) if self.several else entry.within(name)

    def _best(self, name: str, means: Sequence[float | None]) -> float | None:
        known = [mean for mean in means if mean is not None]
        if not self.ranked or name not in NAMES or len(set(known)) < 2:
            return None
        return min(known) if name in LOWER_IS_BETTER else max(known)

    def _rank(self, entry: Entry) -> float:
        mean = entry.mean(self.by)
        return (
            float("inf")
            if mean is None or self._doubted(entry, self.by)
            else mean
            if self.by in LOWER_IS_BETTER
            else -mean
        )

    def _difference(self) -> str:
        """The first field of the protocol in which two runs differ, in words; nothing where there is none."""
        runs = [run for entry in self.entries for run in entry.runs]
        protocols = {run: _protocol(run) for run in runs}
        first = next((run for run in runs if protocols[run]["sampling"] != AT_ONCE), runs[0])
        for run, protocol in protocols.items():
            if found := _apart(protocols[first], protocol):
                field, one, other = found
                return f"protocol.{field} is {one!r} in {first.path}, {other!r} in {run.path}"
        return ""


def _entries(runs: Sequence[RunFolder]) -> list[Entry]:
    """Runs whose recipes differ in nothing but name and seed are one entry."""
    groups: list[list[RunFolder]] = []
    for run in runs:
        alike = (
            group
            for group in groups
            if not difference(_told(group[0]), _told(run)) and _seed(run) not in map(_seed, group)
        )
        found = next(alike, None)
        if found is None:
            groups.append([run])
        else:
            found.append(run)
    names = [group[0].path.resolve().name if len(group) == 1 else group[0].recipe["name"] for group in groups]
    if len(set(names)) < len(names):
        names = [str(group[0].path) for group in groups]
    return [Entry(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def _told(run: RunFolder) -> dict[str, Any]:
    return {name: value for name, value in run.recipe.items() if name not in ("name", "seed")}


def _seed(run: RunFolder) -> Any:
    return run.recipe.get("seed")


def _protocol(run: RunFolder) -> dict[str, Any]:
    evaluation = run.report.get("evaluation")
    if evaluation is None:
        raise ProtocolError(f"{run.path}: was not evaluated; `manyhands evaluate {run.path}` does that")
    told: dict[str, Any] = evaluation["protocol"]
    return told


def _apart(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first field in which protocols differ; a GAN draws at once, so that none of its settings differ."""
    settings = one["sampling"] if other["sampling"] == AT_ONCE and one["sampling"] else other["sampling"]
    return difference(one, {**other, "sampling": settings})


def _first_of(entry: Entry) -> str:
    """The name of the one run whose picture is shown."""
    return entry.name if len(entry.runs) == 1 else f"{entry.name}, seed {_seed(entry.runs[0])}"


def _mean_curve(runs: Sequence[RunFolder], name: str, axis: str) -> list[tuple[float, float]]:
    """The mean over the seeds, at the rounds that all of them measured."""
    curves = [_curve(run, name, axis) for run in runs]
    return [(float(x), float(y)) for x, y in (np.mean(points, axis=0) for points in zip(*curves, strict=False))]


def _mean_of_silos(reports: Sequence[Mapping[str, Any]], name: str) -> dict[str, tuple[float, float]]:
    """The mean over the seeds, of the silos that all of them measured."""
    told = [_silos(report, name) for report in reports]
    common = [silo for silo in told[0] if all(silo in each for each in told)]
    means = {silo: np.mean([each[silo] for each in told], axis=0) for silo in common}
    return {silo: (float(mean), float(floor)) for silo, (mean, floor) in means.items()}


def _curve(run: RunFolder, name: str, axis: str) -> list[tuple[float, float]]:
    """A figure over rounds, or over what was spent until then."""
    rounds = run.rounds
    report = run.report
    spent = list(accumulate(_spent(done, axis, len(report["silos"])) for done in rounds))
    return [(spent[at - 1], value) for at, value in curve(report, rounds, name)]


def _spent(done: Round, axis: str, silos: int) -> float:
    """Work is the mean over all silos, also those that rested."""
    if axis == "flops":
        return sum(done.flops.values()) / silos
    return done.bytes_up + done.bytes_down if axis == "bytes" else 1


def _silos(report: Mapping[str, Any], name: str) -> dict[str, tuple[float, float]]:
    """A figure of each silo, and that of real images."""
    groups = report.get("evaluation", {}).get("groups", {}).get("silos", {})
    return {
        silo: (told["metrics"][name], told["floor"][name])
        for silo, told in groups.items()
        if name in told.get("metrics", {})
    }


def _cost(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return size_text(value) if name.startswith("bytes") else count_text(value)
