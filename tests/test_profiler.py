"""A machine is written down as it was measured, and advised by what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manyhands import profiler
from manyhands.advisor import PASSES, Advisor
from manyhands.devices import Profile, load_devices
from manyhands.errors import RecipeError
from manyhands.links.measure import Link
from manyhands.models.gan import NETWORKS, Gan
from manyhands.models.work import of_blocks
from manyhands.profiler import free_memory, own_name, profiled, speeds, write

SMALL = Gan(size=8, channels=1, classes=2, latent=4, width=4)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass forward and backward takes a hundredth of a second, whatever the block."""
    now = [0.0]
    real = profiler.through

    def through(*told: Any) -> Any:
        now[0] += 0.01
        return real(*told)

    monkeypatch.setattr(profiler, "through", through)
    monkeypatch.setattr(profiler, "perf_counter", lambda: now[0])


@pytest.mark.parametrize("server", [False, True])
def test_speed_times_seconds_is_the_work_of_an_iteration(clock: None, server: bool) -> None:
    found = speeds(SMALL, 8, server=server)
    for network in NETWORKS:
        works = of_blocks(SMALL, network)
        assert len(found.blocks[network]) == SMALL.depth
        for work, speed in zip(works, found.blocks[network], strict=True):
            assert speed * 1e9 * 0.01 == pytest.approx(8 * (work.forward + work.backward))
    every = sum(PASSES[n] * 8 * (w.forward + w.backward) for n in NETWORKS for w in of_blocks(SMALL, n))
    assert found.gflops * 1e9 * 0.01 * SMALL.depth * sum(PASSES.values()) == pytest.approx(every)


def test_profiles_of_several_machines_are_one_fleet(clock: None, tmp_path: Path) -> None:
    work, link = Profile(batch=8, model=SMALL), Link(2e6, 3e6, 0.001)
    told = {"a": profiled(work, "a", link, 5e7, "cpu"), "b": profiled(work, "b", Link(1e6, 1e6), None, "cpu")}
    told["server"] = profiled(work, None, None, None, "cpu")
    for name, each in told.items():
        write(tmp_path / f"{name}.toml", each, "cpu")
    fleet = load_devices([tmp_path / f"{name}.toml" for name in told])
    assert (fleet.batch, fleet.model, fleet.server) == (8, SMALL, told["server"].server)
    assert fleet.devices == told["a"].devices | told["b"].devices
    assert (fleet.devices["a"].rate, fleet.devices["a"].down, fleet.devices["a"].latency) == (2e6, 3e6, 0.001)
    assert Advisor(fleet.model, fleet).exact().keys() == {"a", "b"}
    assert 1e6 < free_memory() < 1e15
    assert (fleet.devices["b"].memory or 0) > 1e6


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a" * 64])
def test_a_name_is_one(name: str) -> None:
    with pytest.raises(RecipeError, match="--name"):
        own_name(name)
    assert own_name("a-1") == "a-1"
    assert own_name(None)
