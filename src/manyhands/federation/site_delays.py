"""How long each site has delayed the others in the open round; each may delay them by one deadline in all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection

from manyhands.links.late_silos import LateSilos

MAX_RETURNS = 3
"""How often all sites repeat a round because one site came back; then the round continues without it."""
BUSY_SHARE = 0.5
"""The share of a deadline that the server may work for one site alone; then it ignores it until the next round."""
REPEAT_SHARE = 0.5
"""The share of a deadline that the others may lose by repeating a round; the rest is for gathering again."""


class SiteDelays:
    """The delays of the open round, in seconds.

    Args:
        deadline: The deadline of the recipe.
        now: The time of the server's clock.

    Attributes:
        late: By site, all the time that it has cost the others; the coordinator adds to it.
        muted: The sites that are ignored until the next round.
        left_out: The sites without which the round continues, since they came back too often or too late.
        busy: How long the server did not listen; this time makes no site late.
    """

    def __init__(self, deadline: float, now: float) -> None:
        self.deadline, self.started, self.busy = deadline, now, 0.0
        self.late = LateSilos(deadline)
        self.muted: set[str] = set()
        self.left_out: set[str] = set()
        self._returns: Counter[str] = Counter()
        self._alone: dict[str, float] = defaultdict(float)
        self._awaited: set[str] = set()

    def begin(self, now: float, since: float) -> None:
        """Begin the round; the time of gathering, since ``since``, is charged to the sites that came back."""
        self._add(self._awaited, now - since)
        self._awaited, self.started = set(), now

    def restart_round(self, sites: Collection[str], now: float) -> None:
        """Repeat the round for these sites, and charge them the work that is lost."""
        self._add(sites, now - self.started)
        self._awaited = set(sites)

    def come_back(self, site: str, now: float) -> str:
        """Count the return of a site; return why the round continues without it, or "" if it is repeated for it."""
        self._returns[site] += site not in self.left_out
        lost = self.late.seconds.get(site, 0.0) + now - self.started
        if self._returns[site] <= MAX_RETURNS and lost <= REPEAT_SHARE * self.deadline and site not in self.left_out:
            return ""
        self.left_out.add(site)
        cost = f"came back {self._returns[site]} times in this round, which cost the others {lost:.0f} s"
        return f"{cost}; the round continues without it"

    def keep_busy(self, site: str, seconds: float) -> None:
        """Charge a site for the time in which the server worked for it alone."""
        self._alone[site] += seconds
        if self._alone[site] > BUSY_SHARE * self.deadline:
            self.muted.add(site)

    def close_round(self) -> None:
        """Forget all delays; the next round begins."""
        for counts in (self.late, self.muted, self.left_out, self._returns, self._alone):
            counts.clear()

    def _add(self, sites: Collection[str], seconds: float) -> None:
        for site in sites:
            self.late.add(site, seconds)
