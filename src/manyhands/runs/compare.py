"""Compares runs in one table, ranked where they were measured alike."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manyhands.errors import ProtocolError, RecipeError
from manyhands.evaluation import verdict
from manyhands.evaluation.metrics import LOWER_IS_BETTER
from manyhands.files.strict_json import finite_json
from manyhands.files.write import disk_errors, replace_file
from manyhands.formatting import TextTable, count_text, number_text, size_text
from manyhands.report.quality import NAMES, sampling_words
from manyhands.runs.compare_entry import Entry, entries_of
from manyhands.runs.compare_figures import draw
from manyhands.runs.recipe_difference import difference
from manyhands.runs.run_folder import RunFolder
from manyhands.spec import suggest

COSTS = {
    "rounds": "rounds", "images_seen": "images seen", "bytes_up": "sent by silos", "bytes_down": "received by silos",
    "flops_silo": "FLOP of a silo (mean)", "flops_server": "FLOP of the server", "seconds": "seconds",
}  # fmt: skip


class Comparison:
    """Runs in the order of one figure, the best first; not ranked where they were measured by different protocols.

    Args:
        folders: The run folders.
        by: The figure by which runs are ranked.
        unranked: Whether runs that were measured by different protocols are shown without ranks, instead of an error.
    """

    def __init__(self, folders: Sequence[Path], by: str = "fid", *, unranked: bool = False) -> None:
        paths = [path.resolve() for path in folders]
        if twice := {path for path in paths if paths.count(path) > 1}:
            raise RecipeError(f"{min(twice)}: is listed twice")
        self.entries = entries_of([RunFolder(path) for path in folders])
        self.by = by
        self.differs = self._difference()
        known = [name for name in NAMES if any(entry.values(name) for entry in self.entries)]
        if by not in known:
            raise RecipeError(f"--by {by}: no run has such a figure; {suggest(by.lower(), known)}")
        self.several = any(len(entry.runs) > 1 for entry in self.entries)
        self.ranked = not self.differs
        if self.differs and not unranked:
            raise ProtocolError(
                f"{self.differs}: figures of different protocols cannot be ranked; measure all runs alike with "
                "`manyhands evaluate`, or show them without ranks with --unranked"
            )
        if self.ranked:
            self.entries.sort(key=self._rank)
        self.shown = [*known, *COSTS]

    def table(self) -> TextTable:
        """A row for each figure and cost, a column for each entry; the best value of each figure has a star."""
        seeds = ["seeds", *[str(len(entry.runs)) for entry in self.entries], ""]
        heads = ["", *[entry.name for entry in self.entries], "real images"]
        return TextTable(heads, [*[self._row(name) for name in self.shown], seeds])

    def verdicts(self) -> list[str]:
        """How far each entry is from real images, in words; with several seeds, by their mean."""
        lines = {entry.name: self._words(entry) for entry in self.entries}
        return [f"{name}: {words}" for name, words in lines.items() if words]

    def _words(self, entry: Entry) -> str:
        return verdict.words(*self._against(entry), few=entry.reports[0].get("evaluation", {}).get("few", False))

    def _against(self, entry: Entry) -> tuple[dict[str, float | None], dict[str, float]]:
        floor: dict[str, float] = entry.reports[0]["floor"]
        return {"fid": entry.mean("fid")}, floor

    def _doubted(self, entry: Entry, name: str) -> bool:
        """Whether the entry is so far from real images that the figure misleads."""
        return name in verdict.MISLEADING and verdict.is_far(*self._against(entry))

    def _any_doubted(self) -> bool:
        return any(self._doubted(entry, name) for entry in self.entries for name in verdict.MISLEADING)

    def markdown(self) -> str:
        """The verdicts, the table and the note as Markdown."""
        table = self.table()
        rows = [table.heads, ["---"] * len(table.heads), *table.rows]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        lines = [*[f"* {line}" for line in self.verdicts()], "", *[f"| {' | '.join(row)} |" for row in cells]]
        return "\n".join([*lines, "", self.note(), ""])

    def csv(self) -> str:
        """The table as CSV: a row for each entry, with means, deviations and floors."""
        out = io.StringIO()
        records = self.records()
        names = list(dict.fromkeys(name for record in records for name in record))
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return out.getvalue()

    def records(self) -> list[dict[str, Any]]:
        """The entries with their figures as numbers."""
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
        """How the figures were measured, or why there are no ranks."""
        if not self.ranked:
            return f"Not ranked: {self.differs}."
        protocol, *other_protocols = [entry.reports[0]["evaluation"]["protocol"] for entry in self.entries]
        ways = dict.fromkeys(sampling_words(protocol_of_entry) for protocol_of_entry in (protocol, *other_protocols))
        spread_of = self.entries[0].reports[0]["evaluation"]["spread_of"]
        return (
            f"Runs are in the order of {NAMES[self.by]}, the best first. * marks the best value of a row, even where "
            "the difference is smaller than the deviations (±). Deviations are over "
            f"{'the seeds of training' if self.several else spread_of}. {protocol['images']:,} samples were compared "
            f"with {protocol['reference']:,} training images by the features of {protocol['features']}; samples were "
            f"{' or '.join(ways)}."
            + " Do not quote values in brackets: their samples are too far from real images."
            * self._any_doubted()
        )

    def write(self, out: Path) -> list[Path]:
        """Write the table as Markdown, CSV and JSON, and the figures; the result lists the files."""
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        records = finite_json({"note": self.note(), "runs": self.records()}, indent=1)
        texts = {"table.md": self.markdown(), "table.csv": self.csv(), "table.json": records}
        for name, text in texts.items():
            replace_file(out / name, text.encode())
        return [out / name for name in texts] + draw(self.entries, self.by, out)

    def _row(self, name: str) -> list[str]:
        means = [entry.mean(name) for entry in self.entries]
        best = self._best(
            name, [None if self._doubted(e, name) else m for e, m in zip(self.entries, means, strict=True)]
        )
        cells = []
        for entry, mean in zip(self.entries, means, strict=True):
            spread = self._spread(entry, name) if name in NAMES else None
            cell = _cost(name, mean) if name in COSTS else number_text(mean)
            cell = f"({cell})" if self._doubted(entry, name) else cell
            cells.append(
                cell
                + (f" ± {number_text(spread)}" if spread is not None else "")
                + (" *" if mean is not None and mean == best else "")
            )
        floors = [report["floor"][name] for e in self.entries for report in e.reports if name in report["floor"]]
        return [{**NAMES, **COSTS}[name], *cells, number_text(floors[0]) if floors and self.ranked else ""]

    def _spread(self, entry: Entry, name: str) -> float | None:
        """The deviation, of one kind in the whole table: over the seeds of training, if any entry has several."""
        return entry.spread(name) if self.several else entry.within(name)

    def _best(self, name: str, means: Sequence[float | None]) -> float | None:
        known = [mean for mean in means if mean is not None]
        if not self.ranked or name not in NAMES or len(set(known)) < 2:
            return None
        return min(known) if name in LOWER_IS_BETTER else max(known)

    def _rank(self, entry: Entry) -> float:
        mean = entry.mean(self.by)
        if mean is None or self._doubted(entry, self.by):
            return float("inf")
        return mean if self.by in LOWER_IS_BETTER else -mean

    def _difference(self) -> str:
        """The first field of the protocol in which two runs differ, in words; empty where there is none."""
        runs = [run for entry in self.entries for run in entry.runs]
        protocols = {run: _protocol(run) for run in runs}
        first = next((run for run in runs if "steps" in protocols[run]["sampling"]), runs[0])
        for run, protocol in protocols.items():
            if field_and_values := _apart(protocols[first], protocol):
                field, one, other = field_and_values
                return f"protocol.{field} is {one!r} in {first.path}, {other!r} in {run.path}"
        return ""


def _protocol(run: RunFolder) -> dict[str, Any]:
    evaluation = run.report.get("evaluation")
    if evaluation is None:
        raise ProtocolError(f"{run.path}: was not evaluated; `manyhands evaluate {run.path}` evaluates it")
    protocol: dict[str, Any] = evaluation["protocol"]
    return protocol


def _apart(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first field in which protocols differ; settings of sampling do not count where one has none, as a GAN."""
    settings = one["sampling"] if other["sampling"].keys() == {"sampler"} and one["sampling"] else other["sampling"]
    return difference(one, {**other, "sampling": settings})


def _cost(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return size_text(value) if name.startswith("bytes") else count_text(value)
