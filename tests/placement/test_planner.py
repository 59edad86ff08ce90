"""Cuts are the best there are, and the authors' own figure is reproduced."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.errors import RecipeError
from manyhands.models.gan import Gan
from manyhands.models.layer_cut import LayerCut, LayerCuts, every_cut
from manyhands.placement.devices import Device, Fleet, ServerMachine
from manyhands.placement.genetic_search import _Space, genetic
from manyhands.placement.planner import Planner
from manyhands.placement.timeline import timeline

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
    return Fleet(server=ServerMachine(gflops=672, rate=1e9), devices=kinds)


def in_bits(cuts: LayerCuts) -> str:
    """As the authors write them: what of the movable blocks is at home."""
    return "".join(f"{cut.head}{4 - cut.tail}" for cut in (cuts.generator, cuts.discriminator))


def test_the_authors_figure_and_cuts() -> None:
    planner = Planner(GAN, authors_fleet(), "authors", min_head=0)
    cuts = planner.cuts()
    assert planner.seconds(cuts) == pytest.approx(8.1405, abs=5e-5)
    known = {"dev1": "0000", "dev5": "0010", "dev6": "1110"}
    assert {name: in_bits(each) for name, each in cuts.items()} == {name: known.get(name, "1111") for name in AUTHORS}


def test_uniform_cuts_take_what_the_notes_say() -> None:
    planner = Planner(GAN, authors_fleet(), "authors", min_head=0)
    least, most = (LayerCuts(generator=cut, discriminator=cut) for cut in (every_cut(GAN)[0], every_cut(GAN)[-1]))
    assert planner.seconds(dict.fromkeys(AUTHORS, least)) == pytest.approx(16.9, abs=0.05)
    assert planner.seconds(dict.fromkeys(AUTHORS, most)) == pytest.approx(195.9, abs=0.05)


def brute(planner: Planner) -> float:
    """The least of all."""
    every = [LayerCuts(generator=g, discriminator=d) for g, d in itertools.product(every_cut(planner.model), repeat=2)]
    every = [cuts for cuts in every if cuts.discriminator.head >= planner.min_head]
    best = np.inf
    fitting = [[c for c in every if planner.memory(c) <= (device.memory or np.inf)]
               for name, device in planner.fleet.devices.items()]  # fmt: skip
    for chosen in itertools.product(*fitting):
        best = min(best, planner.seconds(dict(zip(planner.names, chosen, strict=True))))
    return best


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    def one() -> Device:
        speed, rate = draw(st.floats(0.1, 300)), 10 ** draw(st.floats(5, 9))
        memory = draw(st.one_of(st.none(), st.floats(40e6, 250e6)))
        return Device(count=draw(st.integers(1, 20)), gflops=speed, rate=rate, memory=memory)

    server = ServerMachine(gflops=draw(st.floats(10, 1000)), rate=10 ** draw(st.floats(6, 9)))
    return Fleet(server=server, devices={name: one() for name in ("a", "b")})


@settings(max_examples=50, deadline=None, derandomize=True)
@given(fleets(), st.sampled_from(["authors", "corrected"]), st.integers(0, 1))
def test_nothing_is_better_than_the_exact_cuts(fleet: Fleet, mode: str, min_head: int) -> None:
    planner = Planner(GAN, fleet, mode, min_head)  # type: ignore[arg-type]
    best = brute(planner)
    if np.isinf(best):
        with pytest.raises(RecipeError, match="lacks"):
            planner.cuts()
        return
    cuts = planner.cuts()
    assert planner.seconds(cuts) == pytest.approx(best)
    for name, each in cuts.items():
        assert planner.memory(each) <= (fleet.devices[name].memory or np.inf)


def test_equal_devices_gain_nothing_by_different_cuts() -> None:
    one = Device(count=6, gflops=3, rate=2e7)
    together = Planner(GAN, Fleet(server=ServerMachine(gflops=50, rate=1e9), devices={"a": one}))
    apart = {name: one.model_copy(update={"count": 2}) for name in ("a", "b", "c")}
    each = Planner(GAN, Fleet(server=ServerMachine(gflops=50, rate=1e9), devices=apart))
    assert each.seconds(each.cuts()) == pytest.approx(together.seconds(together.cuts()))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(fleets(), st.sampled_from(["authors", "corrected"]), st.integers(0, 1000))
def test_the_genetic_solver_finds_nothing_better_and_stays_within_memory(fleet: Fleet, mode: str, seed: int) -> None:
    planner = Planner(DEEPER, fleet, mode)  # type: ignore[arg-type]
    try:
        best = planner.seconds(planner.cuts())
        genetic_cuts = problem_cuts(planner, seed)
    except RecipeError:
        return
    assert planner.seconds(genetic_cuts) >= best * (1 - 1e-9)
    for name, each in genetic_cuts.items():
        assert each.discriminator.head >= 1
        assert planner.memory(each) <= (fleet.devices[name].memory or np.inf)


def problem_cuts(planner: Planner, seed: int) -> dict[str, LayerCuts]:
    """By a short search."""
    levels = genetic(planner.problem, seed, population=20, generations=5)
    if levels is None:
        raise RecipeError("none met")
    return planner.cuts_of(levels)


def test_the_genetic_solver_finds_the_best_of_easy_fleets_and_the_same_again() -> None:
    planner = Planner(GAN, authors_fleet(), "authors", min_head=0)
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr] # noqa: NPY002
    genetic_cuts = planner.cuts("genetic", seed=3)
    assert planner.seconds(genetic_cuts) == pytest.approx(planner.seconds(planner.cuts()))
    assert problem_cuts(planner, 1) == problem_cuts(planner, 1)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr] # noqa: NPY002


def test_no_chromosome_is_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[bytes] = []
    real = _Space._measured

    def counted(self: _Space, rows: np.ndarray) -> list[tuple[float, float]]:
        measured.extend(row.tobytes() for row in rows)
        return real(self, rows)

    monkeypatch.setattr(_Space, "_measured", counted)
    genetic(Planner(GAN, authors_fleet()).problem, seed=0, population=20, generations=10)
    assert len(measured) == len(set(measured)) > 20


def test_without_pymoo_the_genetic_solver_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymoo.optimize", None)
    monkeypatch.delitem(sys.modules, "manyhands.placement.genetic_search")
    with pytest.raises(RecipeError, match=r"pip install 'manyhands\[genetic\]'"):
        Planner(GAN, authors_fleet()).cuts("genetic")


def test_one_that_is_too_small_is_named_with_what_it_lacks() -> None:
    small = Device(gflops=1, rate=1e6, memory=10e6)
    fleet = Fleet(
        server=ServerMachine(gflops=10, rate=1e6), devices={"a": small.model_copy(update={"memory": None}), "b": small}
    )
    planner = Planner(GAN, fleet)
    least = planner.memory(LayerCuts(generator=every_cut(GAN)[0], discriminator=LayerCut(head=1, tail=4)))
    for solver in ("exact", "genetic"):
        with pytest.raises(
            RecipeError, match=f"device b: with the smallest cut it lacks {(least - 10e6) / 1e6:,.1f} MB"
        ):
            planner.cuts(solver)  # type: ignore[arg-type]


def test_cuts_that_are_none_are_told() -> None:
    planner = Planner(GAN, authors_fleet())
    good, bad = (LayerCuts(generator=LayerCut(head=h, tail=4), discriminator=LayerCut(head=1, tail=4)) for h in (0, 2))
    with pytest.raises(RecipeError, match="generator: head must be below block 2"):
        planner.seconds(dict.fromkeys(AUTHORS, bad))
    with pytest.raises(RecipeError, match="device dev7: has no cuts"):
        planner.seconds(dict.fromkeys(list(AUTHORS)[:-1], good))
    with pytest.raises(RecipeError, match="min_head is 2"):
        Planner(GAN, authors_fleet(), min_head=2)


def test_what_was_measured_of_a_link_counts() -> None:
    one, server = Device(gflops=3, rate=2e7), ServerMachine(gflops=50, rate=1e9)

    def seconds(**changes: float) -> float:
        planner = Planner(GAN, Fleet(server=server, devices={"a": one.model_copy(update=changes)}))
        return planner.seconds({"a": every})

    every = LayerCuts(generator=every_cut(GAN)[0], discriminator=every_cut(GAN)[0])
    assert seconds(down=1e9) == seconds()
    assert seconds(latency=0.5) == pytest.approx(seconds() + 16 * 0.5)
    slower = Planner(GAN, Fleet(server=server, devices={"a": one})).sent(every) * (1 / 1e6 - 1 / 1e9)
    assert seconds(down=1e6) == pytest.approx(seconds() + slower)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(fleets(), st.sampled_from(["authors", "corrected"]), st.data())
def test_the_timeline_is_as_long_as_the_iteration_and_nobody_does_two_things_at_once(
    fleet: Fleet, mode: str, data: st.DataObject
) -> None:
    for model in (GAN, DEEPER):
        planner = Planner(model, fleet, mode, 0)  # type: ignore[arg-type]
        one = st.sampled_from(every_cut(model))
        cuts = {name: LayerCuts(generator=data.draw(one), discriminator=data.draw(one)) for name in fleet.devices}
        bars = timeline(planner, cuts)
        assert max(bar.end for bar in bars) == pytest.approx(planner.seconds(cuts))
        for who in ("server", *fleet.devices):
            spans = sorted((bar.start, bar.end) for bar in bars if bar.who == who)
            assert all(before[1] <= after[0] + 1e-9 * after[0] for before, after in itertools.pairwise(spans))


def test_bytes_are_those_of_the_paper() -> None:
    planner = Planner(GAN, authors_fleet())
    every = {in_bits(c): c for g, d in itertools.product(every_cut(GAN), repeat=2)
             for c in [LayerCuts(generator=g, discriminator=d)]}  # fmt: skip
    sizes = {"0000": 27.46, "0010": 22.64, "1111": 22.48, "1110": 19.43, "0110": 16.22, "1001": 33.72}
    for bits, megabytes in sizes.items():
        assert planner.sent(every[bits]) / 1e6 == pytest.approx(megabytes, abs=0.005)
