"""How far a run is from real images, in words that come before its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Figures = Mapping[str, float | None]

NEAR, FAR, NOT_YET = 1.5, 10.0, 20.0
"""Times the floor. Where a run of digits had 9 times the FID of real images, every asked digit was recognised, at 22
times 94 %, at 64 times 50 %; at MNIST, 16 x 16, it was 70 % at 14 times and 47 % at 25 times (docs/evaluation.md)."""
MISLEADING = ("precision", "density")
"""They ask how near samples lie to real images, and noise can lie in the midst of them: a little noise on the median of
the digits has precision 1.00 and density 1.21, real images have 0.93 of both, at 250 times the floor."""


def times_floor(metrics: Figures, floor: Figures) -> float | None:
    """The FID of samples over that of real images; None where either is unknown."""
    fid, real = metrics.get("fid"), floor.get("fid")
    return fid / real if fid is not None and real else None


def is_far(metrics: Figures, floor: Figures) -> bool:
    """Whether samples are too far from real images for figures that noise can pass."""
    times = times_floor(metrics, floor)
    return times is not None and times > FAR


def words(metrics: Figures, floor: Figures, *, few: bool = False) -> str:
    """The verdict, in a line; nothing where FID or its floor is unknown.

    Of ``few`` images, no more than there are features, real ones have a high FID, too: samples are then farther from
    them than the ratio says.
    """
    times = times_floor(metrics, floor)
    if times is None:
        return ""
    says = "there are too few images to say how good these are" if few and times <= NOT_YET else _says(times)
    return f"FID {_shown(times)} x the floor: {says}"


def of_report(facts: Mapping[str, Any]) -> str:
    """The verdict on the run of a report."""
    return words(facts["metrics"], facts["floor"], few=facts.get("evaluation", {}).get("few", False))


def caution(metrics: Figures, floor: Figures) -> str:
    """That some figures are not to be quoted, where samples are far from real images; else nothing."""
    times = times_floor(metrics, floor)
    if times is None or times <= FAR:
        return ""
    return (
        f"precision and density: not to be quoted at {_shown(times)} x the floor, where noise can have the "
        "same figures as real images"
    )


def _says(times: float) -> str:
    if times > NOT_YET:
        return "these are not yet images of the kind"
    if times > FAR:
        return "far from real images"
    return "not as good as real images" if times > NEAR else "about as good as real images"


def _shown(times: float) -> str:
    return f"{times:,.0f}" if times >= 10 else f"{times:.1f}"
