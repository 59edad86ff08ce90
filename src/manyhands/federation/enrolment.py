"""The sites of a run: which of them are ready, which have declined and why, and with which of them it began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from manyhands.errors import Reason, Refused
from manyhands.silos.quorum import check_present, has_quorum

KEPT = ("expected", "roster", "held_out", "declined", "waiting")
"""The fields that a server which restarts needs."""


@dataclass
class Enrolment:
    """The sites of a run.

    Args:
        expected: The sites to which the run is offered.
        roster: The sites with which the run began, and the number of images of each. Empty before it begins.
        held_out: The number of held-out images of each site, as the site states it.
        declined: Why a site does not take part.
        waiting: Why a site does not take part yet: somebody there has to approve the recipe first.
        enrolled: The sites that are ready to train.
        absent: The sites for which nobody waits while the sites gather again.
        images: The number of images of each site that has enrolled.
    """

    expected: tuple[str, ...]
    roster: dict[str, int] = field(default_factory=dict)
    held_out: dict[str, int] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    enrolled: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    images: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Enrolment:
        """Return what was kept with ``state``."""
        roster, held_out, declined, waiting = (dict(state[name]) for name in KEPT[1:])
        return cls(tuple(state["expected"]), roster, held_out, declined, waiting)

    def state(self) -> dict[str, Any]:
        """What a server keeps of it on disk."""
        return {name: getattr(self, name) for name in KEPT}

    @property
    def invited(self) -> tuple[str, ...]:
        """The sites that may take part: those with which the run began, or before that all that are expected."""
        return tuple(self.roster) or self.expected

    @property
    def awaited(self) -> list[str]:
        """The sites that a run which gathers still waits for."""
        settled = self.enrolled | self.declined.keys() | self.absent
        return [site for site in self.invited if site not in settled]

    @property
    def reasons(self) -> dict[str, str]:
        """Why sites do not take part, for good or for now."""
        return self.declined | self.waiting

    def check(self, site: str, images: int, limit: int) -> None:
        """Refuse a site that the run began without, or that states an impossible number of images."""
        if self.roster and site not in self.roster:
            raise Refused(Reason.NOT_NOW, f"the run began without {site}")
        if self.roster and self.roster[site] != images:
            raise Refused(
                Reason.WRONG_WEIGHT, f"states {images} images, but had {self.roster[site]} when the run began"
            )
        if images > limit:
            raise Refused(Reason.WRONG_WEIGHT, f"states {images:,} images, but federation.images allows {limit:,}")

    def add(self, site: str, images: int, held_out: int) -> None:
        """Enrol a site, whatever it said before."""
        self.declined.pop(site, None)
        self.waiting.pop(site, None)
        self.absent.discard(site)
        self.images[site], self.held_out[site] = images, held_out
        self.enrolled.add(site)

    def decline(self, site: str, why: str, *, waits: bool) -> None:
        """Note why a site does not take part; with ``waits``, it may still enrol."""
        (self.waiting if waits else self.declined)[site] = why
        self.enrolled.discard(site)

    def has_quorum(self, quorum: int) -> bool:
        """Whether enough sites are enrolled for the run to begin.

        Raises:
            QuorumLost: There are too few, and so many have declined that there may never be enough.
        """
        ready, possible = len(self.enrolled), len(self.invited)
        if self.awaited and not self.declined and not has_quorum(quorum, ready, possible):
            return False
        check_present(quorum, ready, possible, self.reasons, "sites are ready")
        return True

    def start(self) -> None:
        """Begin the run with the sites that are enrolled, unless it has begun before."""
        self.roster = self.roster or {site: self.images[site] for site in sorted(self.enrolled)}
