"""Cuts are the best there are, and the authors' own figure is reproduced."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.advisor import Advisor
from manyhands.devices import Central, Device, Fleet
from manyhands.errors import RecipeError
from manyhands.models.cut import Cuts, every_cut
from manyhands.models.gan import Gan

GAN = Gan(size=28, channels=1, classes=10)
DEEPER = Gan(size=64, channels=3, classes=2, width=8)
AUTHORS = {
    "dev1": (0.48, 50e6), "dev2": (48, 150e6), "dev3": (124.8, 1e9), "dev4": (45.76, 300e6), "dev5": (16, 50e6),
    "dev6": (36, 100e6), "dev7": (120, 800e6),
}  # fmt: skip


def authors_fleet() -> Fleet:
    """A hundred devices of seven kinds, as evenly as they can be."""
    kinds = {
        name: Device(count=14 + (name in ("dev1", "dev2")), gflops=gflops, rate=rate)
        for name, (gflops, rate) in AUTHORS.items()
    }
    return Fleet(server=Central(gflops=672, rate=1e9), devices=kinds)


def in_bits(cuts: Cuts) -> str:
    """As the authors write them: what of the movable blocks is at home."""
    return "".join(f"{cut.head}{4 - cut.tail}" for cut in (cuts.generator, cuts.discriminator))


def test_the_authors_figure_and_cuts() -> None:
    advisor = Advisor(GAN, authors_fleet(), "authors", min_head=0)
    cuts = advisor.exact()
    assert advisor.seconds(cuts) == pytest.approx(8.1405, abs=5e-5)
    told = {"dev1": "0000", "dev5": "0010", "dev6": "1110"}
    assert {name: in_bits(each) for name, each in cuts.items()} == {name: told.get(name, "1111") for name in AUTHORS}


def test_uniform_cuts_take_what_the_notes_say() -> None:
    advisor = Advisor(GAN, authors_fleet(), "authors", min_head=0)
    least, most = (Cuts(generator=cut, discriminator=cut) for cut in (every_cut(GAN)[0], every_cut(GAN)[-1]))
    assert advisor.seconds(dict.fromkeys(AUTHORS, least)) == pytest.approx(16.9, abs=0.05)
    assert advisor.seconds(dict.fromkeys(AUTHORS, most)) == pytest.approx(195.9, abs=0.05)


def brute(advisor: Advisor) -> float:
    """The least of all."""
    every = [Cuts(generator=g, discriminator=d) for g, d in itertools.product(every_cut(advisor.model), repeat=2)]
    every = [cuts for cuts in every if cuts.discriminator.head >= advisor.min_head]
    best = np.inf
    fitting = [[c for c in every if advisor.memory(c) <= (device.memory or np.inf)]
               for name, device in advisor.fleet.devices.items()]  # fmt: skip
    for chosen in itertools.product(*fitting):
        best = min(best, advisor.seconds(dict(zip(advisor.names, chosen, strict=True))))
    return best


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    def one() -> Device:
        speed, rate = draw(st.floats(0.1, 300)), 10 ** draw(st.floats(5, 9))
        memory = draw(st.one_of(st.none(), st.floats(40e6, 250e6)))
        return Device(count=draw(st.integers(1, 20)), gflops=speed, rate=rate, memory=memory)

    server = Central(gflops=draw(st.floats(10, 1000)), rate=10 ** draw(st.floats(6, 9)))
    return Fleet(server=server, devices={name: one() for name in ("a", "b")})


@settings(max_examples=50, deadline=None, derandomize=True)
@given(fleets(), st.sampled_from(["authors", "corrected"]), st.integers(0, 1))
def test_nothing_is_better_than_the_exact_cuts(fleet: Fleet, mode: str, min_head: int) -> None:
    advisor = Advisor(GAN, fleet, mode, min_head)  # type: ignore[arg-type]
    best = brute(advisor)
    if np.isinf(best):
        with pytest.raises(RecipeError, match="lacks"):
            advisor.exact()
        return
    cuts = advisor.exact()
    assert advisor.seconds(cuts) == pytest.approx(best)
    for name, each in cuts.items():
        assert advisor.memory(each) <= (fleet.devices[name].memory or np.inf)


def test_equal_devices_gain_nothing_by_different_cuts() -> None:
    one = Device(count=6, gflops=3, rate=2e7)
    together = Advisor(GAN, Fleet(server=Central(gflops=50, rate=1e9), devices={"a": one}))
    apart = {name: one.model_copy(update={"count": 2}) for name in ("a", "b", "c")}
    each = Advisor(GAN, Fleet(server=Central(gflops=50, rate=1e9), devices=apart))
    assert each.seconds(each.exact()) == pytest.approx(together.seconds(together.exact()))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(fleets(), st.sampled_from(["authors", "corrected"]), st.data())
def test_the_timeline_is_as_long_as_the_iteration_and_nobody_does_two_things_at_once(
    fleet: Fleet, mode: str, data: st.DataObject
) -> None:
    for model in (GAN, DEEPER):
        advisor = Advisor(model, fleet, mode, 0)  # type: ignore[arg-type]
        one = st.sampled_from(every_cut(model))
        cuts = {name: Cuts(generator=data.draw(one), discriminator=data.draw(one)) for name in fleet.devices}
        bars = advisor.timeline(cuts)
        assert max(bar.end for bar in bars) == pytest.approx(advisor.seconds(cuts))
        for who in ("server", *fleet.devices):
            mine = sorted((bar.start, bar.end) for bar in bars if bar.who == who)
            assert all(before[1] <= after[0] + 1e-9 * after[0] for before, after in itertools.pairwise(mine))


def test_bytes_are_those_of_the_paper() -> None:
    advisor = Advisor(GAN, authors_fleet())
    every = {in_bits(c): c for g, d in itertools.product(every_cut(GAN), repeat=2)
             for c in [Cuts(generator=g, discriminator=d)]}  # fmt: skip
    told = {"0000": 27.46, "0010": 22.64, "1111": 22.48, "1110": 19.43, "0110": 16.22, "1001": 33.72}
    for bits, megabytes in told.items():
        assert advisor.sent(every[bits]) / 1e6 == pytest.approx(megabytes, abs=0.005)
