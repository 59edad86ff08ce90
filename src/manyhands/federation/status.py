"""How a run between sites and its sites stand, as a person wants to see it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from manyhands.federation.run_session import OVER

if TYPE_CHECKING:
    from manyhands.federation.run_session import RunSession

LAST_ROUNDS = 5
"""The rounds from whose mean time the time left is estimated."""


def site_states(session: RunSession, returns: Mapping[str, float]) -> dict[str, str]:
    """Describe each site: where in the round it is, or why it is not in it.

    Args:
        session: The run.
        returns: When a site that had been lost came back, in seconds since 1970.
    """
    states = {}
    for site in session.sites.expected:
        states[site] = _site_state(session, site)
        if site in returns:
            states[site] += f"; came back at {time.strftime('%H:%M:%S', time.localtime(returns[site]))}"
    return states


def _site_state(session: RunSession, site: str) -> str:
    coordinator = session.coordinator
    if why := session.sites.waiting.get(site):
        return f"waits: {why}"
    if why := session.sites.declined.get(site):
        return f"does not take part: {why}"
    if session.stage in ("exporting", "ended"):
        return "has finished" if site in session.sites.roster else "took no part"
    if session.stage in OVER:
        return session.stage
    if coordinator is None:
        return "ready" if site in session.sites.enrolled else "awaited"
    if site in coordinator.absent:
        return f"missing: {coordinator.absent[site]}"
    if site in coordinator.done:
        return "has finished"
    return f"has sent {coordinator.waiting[site]!r}" if site in coordinator.waiting else "trains"


def run_state(session: RunSession) -> dict[str, Any]:
    """Return how far a run is, what it has sent, how long it may still take, and the hash of its recipe."""
    rounds = session.folder.rounds
    last = [done.seconds for done in rounds[-LAST_ROUNDS:]]
    left = (session.method.rounds - session.round) * sum(last) / len(last) if last else None
    return {
        "run": session.folder.path.name,
        "stage": session.stage,
        "why": session.why,
        "round": session.round,
        "rounds": session.method.rounds,
        "loss": rounds[-1].loss if rounds else None,
        "seconds_left": left if session.stage not in OVER else 0.0,
        "bytes_up": session.ledger.bytes("up"),
        "bytes_down": session.ledger.bytes("down"),
        "hash": session.recipe_hash,
    }
