"""The figures of quality: their names, how they were measured, and the sections that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manyhands.evaluation import verdict
from manyhands.evaluation.drawing import AT_ONCE
from manyhands.formatting import TextTable, number_text
from manyhands.report.charts import Curves, Line, curves
from manyhands.report.parts import Card, fields

if TYPE_CHECKING:
    from manyhands.runs.round import Round

NAMES = {
    "fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall", "density": "density",
    "coverage": "coverage", "inception_score": "Inception score", "generation_score": "Inception score, balanced",
    "label_match": "asked class recognised", "mifid": "MIFID", "memorised": "near a training image",
    "cas": "CAS accuracy",
    "cas_precision": "CAS precision", "cas_recall": "CAS recall", "cas_f1": "CAS F1", "cas_fpr": "CAS false positives",
}  # fmt: skip
"""The figures in the order in which they are shown, with the names that people read."""
HEADLINES = ("fid", "kid", "coverage", "label_match", "cas", "memorised")
OF_GROUPS = ("fid", "precision", "recall", "coverage", "label_match")


@dataclass(frozen=True)
class Quality:
    """The most important figures, the verdict on them, and how they were measured.

    Args:
        verdict: The verdict in words.
        cards: The figures.
        measured: How they were measured.
    """

    verdict: str
    cards: Sequence[Card]
    measured: str


@dataclass(frozen=True)
class QualityByRound:
    """FID over rounds; ``protocol`` says how it was measured, where that differs from the figures at the end.

    Args:
        chart: The curve.
        protocol: How it was measured; empty where that is as at the end.
    """

    chart: Curves
    protocol: str


@dataclass(frozen=True)
class AllFigures:
    """Every figure, how good the classifier is whose features they use, and the protocol.

    Args:
        table: The figures.
        classifier: How good the classifier is.
        protocol: The fields of the protocol.
    """

    table: TextTable
    classifier: str
    protocol: TextTable


def quality(report: Mapping[str, Any]) -> Quality | None:
    """The section that comes first; None where nothing was measured."""
    metrics, floor, spread = report["metrics"], report["floor"], report.get("evaluation", {}).get("spread", {})
    cards = [
        Card(
            NAMES[name],
            number_text(metrics[name]),
            number_text(spread[name]) if name in spread else "",
            number_text(floor.get(name)),
        )
        for name in HEADLINES
        if name in metrics
    ]
    return Quality(verdict.of_report(report), cards, measured_words(report)) if cards else None


def by_round(report: Mapping[str, Any], rounds: Sequence[Round]) -> QualityByRound | None:
    """FID over rounds; None where it was measured less than twice."""
    points, at_end = curve(report, rounds, "fid"), report.get("at_end", {})
    if len(points) < 2:
        return None
    lines, floor, protocol = [Line(points, "samples")], at_end.get("floor", {}).get("fid"), at_end.get("protocol")
    if floor is not None:
        lines.append(Line([(points[0][0], floor), (points[-1][0], floor)], "real images", "floor"))
    differs = protocol and protocol != report["evaluation"]["protocol"]
    return QualityByRound(curves(lines, "round", "FID", zero=True), protocol_words(protocol) if differs else "")


def all_figures(report: Mapping[str, Any]) -> AllFigures | None:
    """Every figure with its protocol; None where nothing was measured."""
    evaluation = report.get("evaluation")
    if not evaluation:
        return None
    about = "classes" if evaluation["classifier"]["labels"] else "rotations"
    return AllFigures(
        figures_table(report),
        f"The accuracy of the classifier is {evaluation['classifier']['accuracy']:.1%} on the {about} of held-out real "
        "images.",
        fields(evaluation["protocol"]),
    )


def by_group(report: Mapping[str, Any]) -> list[tuple[str, TextTable]]:
    """A table of the figures of each class, and of each domain, where they were measured."""
    groups = report.get("evaluation", {}).get("groups", {})
    return [
        (f"By {name}", _group_table(name, groups[kind]))
        for kind, name in (("classes", "class"), ("domains", "domain"))
        if kind in groups
    ]


def figures_table(report: Mapping[str, Any]) -> TextTable:
    """A row for each figure: of the samples, of real images, and its deviation."""
    metrics, floor, spread = report["metrics"], report["floor"], report.get("evaluation", {}).get("spread", {})
    doubted = verdict.MISLEADING if verdict.is_far(metrics, floor) else ()
    rows = [
        [
            NAMES[name] + " (do not quote)" * (name in doubted),
            *map(number_text, (metrics[name], floor.get(name), spread.get(name))),
        ]
        for name in NAMES
        if name in metrics
    ]
    return TextTable(["figure", "samples", "real images", "deviation"], rows)


def protocol_words(protocol: Mapping[str, Any]) -> str:
    """How figures were measured, in words."""
    return (
        f"{protocol['images']:,} samples were compared with {protocol['reference']:,} training images by the features "
        f"of {protocol['features']}. Real images: as many held-out images, measured in the same way. Samples were "
        f"{sampling_words(protocol)}, seeds: {', '.join(map(str, protocol['seeds']))}"
    )


def sampling_words(protocol: Mapping[str, Any]) -> str:
    """How samples were drawn, in words."""
    sampling, weights = protocol["sampling"], f"weights: {protocol['weights']}"
    if not sampling:
        return f"reconstructed from the held-out images by an autoencoder, {weights}"
    if sampling == AT_ONCE:
        return f"drawn in one step by a GAN, {weights}"
    if "steps" not in sampling:
        return f"drawn by {sampling['sampler']}, {weights}"
    return f"drawn by {sampling['sampler']} in {sampling['steps']} steps, guidance {sampling['guidance']:g}, {weights}"


def measured_words(report: Mapping[str, Any]) -> str:
    """How the figures of a report were measured, in sentences."""
    evaluation = report["evaluation"]
    return f"{protocol_words(evaluation['protocol'])}. Deviations (±) are over {evaluation['spread_of']}."


def curve(report: Mapping[str, Any], rounds: Sequence[Round], name: str) -> list[tuple[int, float]]:
    """A figure by round, always by the same protocol: in the rounds that were evaluated, and at the end."""
    at_end = report.get("at_end", {}).get("metrics", {})
    points = {
        closed_round.number + 1: closed_round.metrics[name] for closed_round in rounds if name in closed_round.metrics
    }
    return sorted((points | ({report["rounds"]: at_end[name]} if name in at_end else {})).items())


def beside_real(group: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The figures of a group, each with the figure of real images in brackets."""
    metrics, floor = group.get("metrics", {}), group.get("floor", {})
    return [f"{number_text(metrics[name])} ({number_text(floor[name])})" if name in metrics else "-" for name in names]


def _group_table(name: str, groups: Mapping[str, Any]) -> TextTable:
    rows = [[member, f"{group['images']:,}", *beside_real(group, OF_GROUPS)] for member, group in groups.items()]
    return TextTable([name, "samples", *[f"{NAMES[figure]} (real)" for figure in OF_GROUPS]], rows)
