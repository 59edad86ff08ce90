"""How the sites and the newest run stand, as the admin sees it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from manyhands.federation.policy import recipe_hash, recipe_text
from manyhands.federation.run_session import OVER

if TYPE_CHECKING:
    from manyhands.federation.run_session import RunSession


def site_states(sites: Sequence[str], connected: Collection[str], running: RunSession | None) -> dict[str, str]:
    """Describe each site: whether it is connected, and whether it takes part in the run."""
    states = {}
    for site in sites:
        states[site] = "connected" if site in connected else "not connected"
        if running and (why := running.sites.reasons.get(site)):
            states[site] += f", does not take part: {why}"
        elif running and running.coordinator and site in running.coordinator.absent:
            states[site] += f", missing: {running.coordinator.absent[site]}"
        elif running and site in running.sites.enrolled and running.stage not in OVER:
            states[site] += ", takes part"
    return states


def run_state(running: RunSession) -> dict[str, Any]:
    """Return how far a run is, what it has sent, and the hash of its recipe."""
    return {
        "run": running.folder.path.name,
        "stage": running.stage,
        "why": running.why,
        "round": running.round,
        "rounds": running.method.rounds,
        "bytes_up": running.ledger.bytes("up"),
        "bytes_down": running.ledger.bytes("down"),
        "hash": recipe_hash(recipe_text(running.recipe)),
    }
