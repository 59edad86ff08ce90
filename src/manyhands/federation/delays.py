"""What sites have cost the others in the open round: each may cost them one deadline of the recipe in all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection

MAX_RETURNS = 3
"""So often a site may have all begin a round again; then the round goes on without it."""
BUSY_SHARE = 0.5
"""The share of a deadline that the server may be busy with a site alone; then it is not heard before the next round."""
REPEAT_SHARE = 0.5
"""The share of a deadline that a site may have the others do again in a round; the rest is for gathering anew."""


class SiteDelays:
    """Seconds by site: ``late`` is all that it has cost, which the coordinator adds to. ``muted`` sites are not heard.

    ``left_out`` sites have begun again too often, or too late: the round goes on without them. ``busy`` are the seconds
    for which the server did not listen, in which nobody is late.
    """

    def __init__(self, deadline: float, now: float) -> None:
        self.deadline, self.started, self.busy = deadline, now, 0.0
        self.late: dict[str, float] = {}
        self.muted: set[str] = set()
        self.left_out: set[str] = set()
        self._returns: Counter[str] = Counter()
        self._alone: dict[str, float] = defaultdict(float)
        self._awaited: set[str] = set()

    def begin(self, now: float, since: float) -> None:
        """All are there, gathered since then: that is what those cost for whom the round is begun again."""
        self._add(self._awaited, now - since)
        self._awaited, self.started = set(), now

    def restart_round(self, sites: Collection[str], now: float) -> None:
        """The round is begun again for these sites: what was done of it is lost."""
        self._add(sites, now - self.started)
        self._awaited = set(sites)

    def come_back(self, site: str, now: float) -> str:
        """A site comes back in the middle of a round: why the round goes on without it, or nothing where it may."""
        self._returns[site] += site not in self.left_out
        lost = self.late.get(site, 0.0) + now - self.started
        if self._returns[site] <= MAX_RETURNS and lost <= REPEAT_SHARE * self.deadline and site not in self.left_out:
            return ""
        self.left_out.add(site)
        often = f"began again {self._returns[site]} times, and had the others lose {lost:.0f} s"
        return f"{often} in this round; it goes on without it"

    def keep_busy(self, site: str, seconds: float) -> None:
        """The server was busy with a site alone."""
        self._alone[site] += seconds
        if self._alone[site] > BUSY_SHARE * self.deadline:
            self.muted.add(site)

    def close_round(self) -> None:
        """Everybody begins anew."""
        for counted in (self.late, self.muted, self.left_out, self._returns, self._alone):
            counted.clear()

    def _add(self, sites: Collection[str], seconds: float) -> None:
        for site in sites:
            self.late[site] = self.late.get(site, 0.0) + seconds
