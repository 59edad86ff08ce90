"""Which silos were found to be alike: a picture, a table, and whether the domains of their images say the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyhands.evaluation import figures
from manyhands.report.markup import number, picture, table, text

if TYPE_CHECKING:
    from manyhands.runs.run_folder import Round

Weighed = Mapping[str, Mapping[str, float]]


def facts(rounds: Sequence[Round], domains: Mapping[str, str]) -> dict[str, Any]:
    """How silos lay and counted in the last round in which they were clustered; nothing where they never were."""
    found: Weighed = next((done.weighed for done in reversed(rounds) if _is_clustered(done.weighed)), {})
    if not found:
        return {}
    count = len({told["cluster"] for told in found.values()})
    return {"silos": found, "count": count, "agreement": agreement(found, domains)}


def agreement(found: Weighed, domains: Mapping[str, str]) -> float | None:
    """The adjusted Rand index of clusters and domains: 1 if they are the same, 0 as by chance.

    References:
        Comparing Partitions, Hubert, Arabie, 1985, Journal of Classification 2
    """
    from sklearn.metrics import adjusted_rand_score

    known = [silo for silo in found if silo in domains]
    if len({domains[silo] for silo in known}) < 2:
        return None
    return float(adjusted_rand_score([domains[silo] for silo in known], [found[silo]["cluster"] for silo in known]))


def section(told: Mapping[str, Any], drawn: Path) -> str:
    """The part of the page that shows them; nothing where there are none."""
    clusters, domains = told.get("clusters"), told.get("domains", {})
    if not clusters:
        return ""
    found: Weighed = clusters["silos"]
    kinds = {silo: (domains.get(silo, "silos"), int(each["cluster"])) for silo, each in found.items()}
    figures.clusters(drawn, {silo: (each["x"], each["y"]) for silo, each in found.items() if "x" in each}, kinds)
    count, same = clusters["count"], clusters["agreement"]
    about = f"{count} cluster{'s' * (count != 1)} found in what the server's middle makes of a batch of each silo."
    about += "" if same is None else f" They agree with the domains by an adjusted Rand index of {same:.2f}."
    rows = [
        [silo, kinds[silo][0], str(kinds[silo][1] + 1), number(each["distance"]), number(each["weight"])]
        for silo, each in found.items()
    ]
    shown = table(["silo", "domain", "cluster", "distance", "weight"], rows, left=2)
    return (
        f"<h2>Clusters</h2><p>{text(about)}</p>{picture(drawn, about)}<details><summary>Who is in which</summary>"
        f"{shown}</details>"
    )


def _is_clustered(weighed: Weighed) -> bool:
    return any("x" in told for told in weighed.values())
