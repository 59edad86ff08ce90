"""Which silos were clustered together: a picture, a table, and how well the clusters agree with the domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyhands.evaluation import plots
from manyhands.formatting import TextTable, number_text
from manyhands.report.parts import Picture, picture

if TYPE_CHECKING:
    from manyhands.runs.round import Round

Contributions = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Clusters:
    """The silos as points in a picture, which says how many clusters there are, and a row for each silo.

    Args:
        picture: The picture.
        table: The rows.
    """

    picture: Picture
    table: TextTable


def build_section(rounds: Sequence[Round], domains: Mapping[str, str]) -> dict[str, Any]:
    """The clusters and weights of silos in the last round that clustered them; empty where no round did."""
    contributions: Contributions = next(
        (closed_round.contributions for closed_round in reversed(rounds) if _is_clustered(closed_round.contributions)),
        {},
    )
    if not contributions:
        return {}
    count = len({entry["cluster"] for entry in contributions.values()})
    return {"silos": contributions, "count": count, "agreement": agreement(contributions, domains)}


def agreement(contributions: Contributions, domains: Mapping[str, str]) -> float | None:
    """The adjusted Rand index of clusters and domains: 1 if they are the same, 0 as expected by chance.

    References:
        Comparing Partitions, Hubert, Arabie, 1985, Journal of Classification 2
    """
    from sklearn.metrics import adjusted_rand_score

    known = [silo for silo in contributions if silo in domains]
    if len({domains[silo] for silo in known}) < 2:
        return None
    return float(
        adjusted_rand_score([domains[silo] for silo in known], [contributions[silo]["cluster"] for silo in known])
    )


def content(report: Mapping[str, Any], path: Path) -> Clusters | None:
    """The clusters for the page, with a picture that is drawn at ``path``; None where there are none."""
    clusters, domains = report.get("clusters"), report.get("domains", {})
    if not clusters:
        return None
    contributions: Contributions = clusters["silos"]
    kinds = {silo: (domains.get(silo, "silos"), int(entry["cluster"])) for silo, entry in contributions.items()}
    plots.clusters(
        path, {silo: (entry["x"], entry["y"]) for silo, entry in contributions.items() if "x" in entry}, kinds
    )
    count, same = clusters["count"], clusters["agreement"]
    about = f"{count} cluster{'s' * (count != 1)}, by the activations of the server's segment on a batch of each silo."
    about += "" if same is None else f" The adjusted Rand index of clusters and domains is {same:.2f} (1: the same)."
    rows = [
        [silo, kinds[silo][0], str(kinds[silo][1] + 1), number_text(entry["distance"]), number_text(entry["weight"])]
        for silo, entry in contributions.items()
    ]
    return Clusters(
        picture(path, about),
        TextTable(["silo", "domain", "cluster", "distance to the mean", "weight in the mean"], rows, left=2),
    )


def _is_clustered(contributions: Contributions) -> bool:
    return any("x" in entry for entry in contributions.values())
