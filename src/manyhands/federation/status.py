"""How the sites and the newest run stand, as the admin sees it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from manyhands.federation.policy import recipe_hash, recipe_text
from manyhands.federation.run_session import OVER

if TYPE_CHECKING:
    from manyhands.federation.run_session import RunSession


def site_states(sites: Sequence[str], connected: Collection[str], session: RunSession | None) -> dict[str, str]:
    """Describe each site: whether it is connected, and whether it takes part in the run."""
    states = {}
    for site in sites:
        states[site] = "connected" if site in connected else "not connected"
        if session and (why := session.sites.reasons.get(site)):
            states[site] += f", does not take part: {why}"
        elif session and session.coordinator and site in session.coordinator.absent:
            states[site] += f", missing: {session.coordinator.absent[site]}"
        elif session and site in session.sites.enrolled and session.stage not in OVER:
            states[site] += ", takes part"
    return states


def run_state(session: RunSession) -> dict[str, Any]:
    """Return how far a run is, what it has sent, and the hash of its recipe."""
    return {
        "run": session.folder.path.name,
        "stage": session.stage,
        "why": session.why,
        "round": session.round,
        "rounds": session.method.rounds,
        "bytes_up": session.ledger.bytes("up"),
        "bytes_down": session.ledger.bytes("down"),
        "hash": recipe_hash(recipe_text(session.recipe)),
    }
