"""Clusters that were found, beside the domains that are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from manyhands.report import clusters
from manyhands.report.clusters import Contributions
from manyhands.report.render import environment
from manyhands.runs.round import Round


def silos(numbers: list[int]) -> Contributions:
    return {
        f"s{i}": {"cluster": number, "distance": 0.1, "weight": 0.5, "x": float(number), "y": float(i)}
        for i, number in enumerate(numbers)
    }


def rounds(*contributions: Contributions) -> list[Round]:
    fields = {
        "seconds": 1.0,
        "losses": {},
        "images_seen": 0,
        "bytes_up": 0,
        "bytes_down": 0,
        "missing": {},
        "rounds": 9,
    }
    return [
        Round(
            number=number, contributions={silo: dict(fields) for silo, fields in round_contributions.items()}, **fields
        )  # type: ignore[arg-type]
        for number, round_contributions in enumerate(contributions)
    ]


@pytest.mark.parametrize(
    ("numbers", "kinds", "same"),
    [([1, 1, 0, 0], "aabb", 1.0), ([0, 0, 0, 0], "aabb", 0.0), ([0, 0, 1, 1], "abab", -0.5)],
)
def test_agreement_is_one_whatever_the_clusters_are_called_and_no_more_than_chance_is_none(
    numbers: list[int], kinds: str, same: float
) -> None:
    domains = {f"s{i}": kind for i, kind in enumerate(kinds)}
    assert clusters.agreement(silos(numbers), domains) == pytest.approx(same)
    assert clusters.agreement(silos(numbers), dict.fromkeys(domains, "a")) is None
    assert clusters.agreement(silos(numbers), {}) is None


def test_the_last_round_that_clustered_is_told_and_shown(tmp_path: Path) -> None:
    plain: Contributions = {"s0": {"cluster": 0, "distance": 0.0, "weight": 1.0}}
    domains = {"s0": "<mnist>", "s1": "fashion"}
    assert clusters.build_section(rounds(plain), domains) == {}
    report = clusters.build_section(rounds(silos([0, 0]), silos([0, 1]), plain), domains)
    assert (report["count"], report["agreement"]) == (2, 1.0)
    content = clusters.content({"clusters": report, "domains": domains}, tmp_path / "clusters.png")
    page = environment().get_template("sections.html").make_module().clusters(content)  # type: ignore[attr-defined]
    assert "2 clusters" in page
    assert "&lt;mnist&gt;" in page
    assert (tmp_path / "clusters.png").stat().st_size > 5000
    assert clusters.content({"clusters": {}}, tmp_path / "none.png") is None
