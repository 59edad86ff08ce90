"""The sections on the silos: how each trained, what it sent and worked, and which images it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manyhands.formatting import TextTable, count_text, number_text, size_text
from manyhands.report.charts import Bars, Curves, Line, bars, curves
from manyhands.report.parts import Picture, picture
from manyhands.report.quality import beside_real

if TYPE_CHECKING:
    from manyhands.runs.round import Round
    from manyhands.runs.run_folder import RunFolder

Ledger = Sequence[Mapping[str, Any]]

MAX_CELLS, MAX_LINES, MAX_BARS = 3000, 50, 30
MAX_HEAT = 0.65
"""The opacity of the cell with the most images: its number can still be read."""


@dataclass(frozen=True)
class Silos:
    """A row for each silo; ``measured`` says whether the rows have figures of quality.

    Args:
        table: The rows.
        measured: Whether the rows have figures of quality.
        chart: FID of each silo; None where it was not measured.
    """

    table: TextTable
    measured: bool
    chart: Bars | None


@dataclass(frozen=True)
class HeatCell:
    """A number of images, and the opacity of the cell that shows it, in [0, 1].

    Args:
        images: The number of images.
        heat: The opacity.
    """

    images: str
    heat: str


@dataclass(frozen=True)
class Holdings:
    """How many images of each class each silo holds: as cells, or where there are too many of them, as a picture.

    Args:
        classes: The names of the classes.
        rows: Each silo with its cells.
        held_out: How many images are held out.
        picture: The picture, where there are too many cells.
    """

    classes: Sequence[str]
    rows: Sequence[tuple[str, Sequence[HeatCell]]]
    held_out: str
    picture: Picture | None = None


def losses(rounds: Iterable[Round]) -> dict[str, list[tuple[int, float]]]:
    """The loss of each silo in each round; rounds are counted from 1."""
    by_silo: dict[str, list[tuple[int, float]]] = {}
    for closed_round in rounds:
        for silo, loss in closed_round.losses.items():
            by_silo.setdefault(silo, []).append((closed_round.number + 1, loss))
    return by_silo


def training(rounds: Sequence[Round]) -> Curves | None:
    """The loss over rounds, of the silos and their mean; None where there are fewer than two rounds."""
    mean = [(closed_round.number + 1, closed_round.loss) for closed_round in rounds if closed_round.losses]
    if len(mean) < 2:
        return None
    lines = [Line(points, "", "thin") for points in list(losses(rounds).values())[:MAX_LINES]]
    return curves([*lines, Line(mean, "mean of the silos")], "round", "training loss")


def silos(report: Mapping[str, Any], rounds: Sequence[Round], ledger: Ledger) -> Silos:
    """What each silo holds, sent, worked and missed, and how good its images are."""
    groups = report.get("evaluation", {}).get("groups", {}).get("silos", {})
    heads = ["silo", "images", "last loss"]
    heads += ["FID (real)", "coverage (real)", "class recognised (real)"] if groups else []
    heads += ["sent", "received", "FLOP", "rounds missed"]
    return Silos(TextTable(heads, _silo_rows(report, rounds, ledger, groups)), bool(groups), _chart(groups))


def holdings(report: Mapping[str, Any], folder: RunFolder) -> Holdings | None:
    """Who holds what; None where that is not known, as on the server of a federation."""
    counts, classes = report["class_counts"], report["classes"] or ["images"]
    if len(counts) * len(classes) > MAX_CELLS:
        return Holdings((), (), "", picture(folder.figures / "partition.png", "images of each class at each silo"))
    if not counts:
        return None
    maximum = max(1, *map(max, counts.values()))
    rows = [
        (silo, [HeatCell(f"{count:,}", f"{MAX_HEAT * count / maximum:.2f}") for count in row])
        for silo, row in counts.items()
    ]
    return Holdings(classes, rows, f"{sum(report['held_out_counts'].values()):,}")


def _silo_rows(
    report: Mapping[str, Any], rounds: Sequence[Round], ledger: Ledger, groups: Mapping[str, Any]
) -> list[list[str]]:
    by_silo, carried = losses(rounds), Counter[tuple[str, str]]()
    for entry in ledger:
        carried[entry["silo"], entry["direction"]] += entry["bytes"]
    rows = []
    for silo, images in report["silos"].items():
        cells = [f"{images:,}", number_text(by_silo[silo][-1][1]) if silo in by_silo else "-"]
        cells += beside_real(groups.get(silo, {}), ("fid", "coverage", "label_match")) if groups else []
        cells += [size_text(carried[silo, direction]) for direction in ("up", "down")]
        missed = sum(silo in closed_round.missing for closed_round in rounds)
        rows.append([silo, *cells, count_text(report["flops_silos"].get(silo, 0)), str(missed)])
    return rows


def _chart(groups: Mapping[str, Any]) -> Bars | None:
    """FID of each silo, where several were measured, and not too many for a chart."""
    fids = {
        name: (group["metrics"]["fid"], group["floor"]["fid"]) for name, group in groups.items() if "metrics" in group
    }
    return bars(fids, "FID of each silo; the marks are the FID of real images") if 1 < len(fids) <= MAX_BARS else None
