"""The sites of a run: who is waited for, who may come, and what a server that restarts knows of them."""

from __future__ import annotations

import json

import pytest

from manyhands.errors import QuorumLost, Refused
from manyhands.federation.enrolment import Enrolment


def test_whoever_enrols_declines_or_is_absent_is_not_awaited() -> None:
    sites = Enrolment(("a", "b", "c", "d"))
    sites.add("a", 5, 0)
    sites.decline("b", "its policy", waits=False)
    sites.decline("c", "not approved", waits=True)
    sites.absent.add("d")
    assert sites.awaited == ["c"]
    sites.add("b", 5, 0)
    assert sites.reasons == {"c": "not approved"}


def test_a_run_goes_on_with_the_sites_that_it_began_with() -> None:
    sites = Enrolment(("a", "b", "c"))
    sites.add("b", 5, 1)
    sites.start()
    sites.add("b", 5, 1)
    assert (sites.roster, sites.invited) == ({"b": 5}, ("b",))
    sites.check("b", 5, limit=5)
    for site, images, limit, why in (("a", 5, 9, "began without a"), ("b", 4, 9, "4 images"), ("b", 5, 4, "allows 4")):
        with pytest.raises(Refused, match=why):
            sites.check(site, images, limit)


def test_too_few_sites_wait_as_long_as_somebody_may_still_come() -> None:
    sites = Enrolment(("a", "b"))
    assert not sites.has_quorum(2)
    sites.add("a", 5, 0)
    assert not sites.has_quorum(2)
    assert sites.has_quorum(1)
    sites.decline("b", "its policy", waits=False)
    with pytest.raises(QuorumLost, match=r"1 sites are ready, the recipe asks for 2 \(b: its policy\)"):
        sites.has_quorum(2)


def test_what_is_kept_is_read_again_and_nobody_is_enrolled_any_more() -> None:
    sites = Enrolment(("a", "b", "c"))
    sites.add("a", 5, 1)
    sites.start()
    sites.decline("b", "its policy", waits=False)
    sites.decline("c", "not approved", waits=True)
    again = Enrolment.load(json.loads(json.dumps(sites.state())))
    assert again.state() == sites.state()
    assert again.enrolled == set()
