"""How far the samples of a run are from real images, in words that stand before its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manyhands.evaluation.metrics import TAIL

Figures = Mapping[str, float | None]

NEAR, FAR, NOT_YET = 1.5, 10.0, 20.0
"""Ratios of the FID of samples to that of real images (the floor). A classifier recognised every requested digit in a
run with 9 times the floor, 94 % with 22 times, 50 % with 64 times; on MNIST, 16 x 16, it was 70 % with 14 times and
47 % with 25 times (docs/evaluation.md)."""
ALARM = 4 * TAIL
"""A larger share of memorised samples than this is warned of."""
MISLEADING = ("precision", "density")
"""They measure how near samples are to real images, and noise can be near to all of them: the median digit with little
noise has precision 1.00 and density 1.21 at 250 times the floor, where real images have 0.93 of both."""


def times_floor(metrics: Figures, floor: Figures) -> float | None:
    """The FID of samples divided by that of real images; None where either is unknown."""
    fid, real = metrics.get("fid"), floor.get("fid")
    return fid / real if fid is not None and real else None


def is_far(metrics: Figures, floor: Figures) -> bool:
    """Whether samples are so far from real images that precision and density mislead."""
    times = times_floor(metrics, floor)
    return times is not None and times > FAR


def words(metrics: Figures, floor: Figures, *, few: bool = False) -> str:
    """The verdict in one line; empty where the FID or its floor is unknown.

    With ``few`` images, no more than there are features, real images have a high FID, too: samples are then farther
    from them than the ratio says.
    """
    times = times_floor(metrics, floor)
    if times is None:
        return ""
    says = "there are too few images to say how good these are" if few and times <= NOT_YET else _says(times)
    return f"FID is {_shown(times)} times that between real images: {says}"


def of_report(report: Mapping[str, Any]) -> str:
    """The verdict on the run of a report."""
    return words(report["metrics"], report["floor"], few=report.get("evaluation", {}).get("few", False))


def caution(metrics: Figures, floor: Figures) -> str:
    """A warning where samples are so far from real images that some figures must not be quoted; else empty."""
    times = times_floor(metrics, floor)
    if times is None or times <= FAR:
        return ""
    return (
        f"precision and density: do not quote them: at {_shown(times)} times the FID between real images, even pure "
        "noise may score like real images"
    )


def notes(metrics: Figures, floor: Figures, images: int, dimensions: int) -> list[str]:
    """What a reader of figures must know.

    Args:
        metrics: The figures of the samples.
        floor: The figures of real images.
        images: The number of held-out images.
        dimensions: The number of features that are compared.
    """
    lines = [line] if (line := caution(metrics, floor)) else []
    share = metrics["memorised"] or 0
    if share > ALARM:
        lines.append(
            f"memorisation: {share:.0%} of the samples are nearer to a training image than 95 % of the held-out "
            "images are (5 % is expected)"
        )
    if images <= dimensions:
        lines.append(
            f"FID: {images} images are too few for a full covariance of {dimensions} features; compare FID with that "
            "between real images, or use KID"
        )
    return lines


def _says(times: float) -> str:
    if times > NOT_YET:
        return "the samples do not look like the training images yet"
    if times > FAR:
        return "far from real images"
    return "not as good as real images" if times > NEAR else "about as good as real images"


def _shown(times: float) -> str:
    return f"{times:,.0f}" if times >= 10 else f"{times:.1f}"
