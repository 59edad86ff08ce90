"""A machine is written down as it was measured, and advised by what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from manyhands.cli.app import app
from manyhands.errors import RecipeError
from manyhands.models.block_cost import block_flops
from manyhands.models.gan import NETWORKS, Gan
from manyhands.placement import profiler
from manyhands.placement.devices import Profile, load_devices
from manyhands.placement.link_speed import Link
from manyhands.placement.planner import PASSES, Planner
from manyhands.placement.profiler import device_name, free_memory, profile_machine, speeds, write

SMALL = Gan(size=8, channels=1, classes=2, latent=4, width=4)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass forward and backward takes a hundredth of a second, whatever the block."""
    now = [0.0]
    real = profiler.run_blocks

    def through(*args: Any) -> Any:
        now[0] += 0.01
        return real(*args)

    monkeypatch.setattr(profiler, "run_blocks", through)
    monkeypatch.setattr(profiler, "perf_counter", lambda: now[0])


@pytest.mark.parametrize(("serves", "batch"), [(0, 8), (3, 24), (20, 64)])
def test_speed_times_seconds_is_the_work_of_an_iteration(clock: None, serves: int, batch: int) -> None:
    measured = speeds(SMALL, 8, serves=serves)
    for network in NETWORKS:
        works = block_flops(SMALL, network)
        assert len(measured.blocks[network]) == SMALL.depth
        for work, speed in zip(works, measured.blocks[network], strict=True):
            assert speed * 1e9 * 0.01 == pytest.approx(batch * (work.forward + work.backward))
    every = sum(PASSES[n] * batch * (w.forward + w.backward) for n in NETWORKS for w in block_flops(SMALL, n))
    assert measured.gflops * 1e9 * 0.01 * SMALL.depth * sum(PASSES.values()) == pytest.approx(every)


def test_profiles_of_several_machines_are_one_fleet(clock: None, tmp_path: Path) -> None:
    work, link = Profile(batch=8, model=SMALL), Link(2e6, 3e6, 0.001)
    profiles = {"a": profile_machine(work, "a", link, memory=5e7), "b": profile_machine(work, "b", Link(1e6, 1e6))}
    profiles["server"] = profile_machine(work, "", None, serves=2)
    for name, profile in profiles.items():
        write(tmp_path / f"{name}.toml", profile, "cpu")
    fleet = load_devices([tmp_path / f"{name}.toml" for name in profiles])
    assert (fleet.batch, fleet.model, fleet.server) == (8, SMALL, profiles["server"].server)
    assert fleet.devices == profiles["a"].devices | profiles["b"].devices
    assert (fleet.devices["a"].rate, fleet.devices["a"].down, fleet.devices["a"].latency) == (2e6, 3e6, 0.001)
    assert Planner(fleet.model, fleet).cuts().keys() == {"a", "b"}
    assert 1e6 < free_memory() < 1e15
    assert (fleet.devices["b"].memory or 0) > 1e6


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a" * 64])
def test_a_name_is_one(name: str) -> None:
    with pytest.raises(RecipeError, match="--name"):
        device_name(name)
    assert device_name("a-1") == "a-1"
    assert device_name(None)


MODEL = "batch = 8\n[model]\nsize = 8\nchannels = 1\nclasses = 2\nlatent = 4\nwidth = 4\n"


def said(*args: str) -> Any:
    """What the command prints, or the error that it ends with."""
    result = CliRunner().invoke(app, list(args))
    return result.exception or result.output


def test_the_commands_measure_and_advise(clock: None, tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(MODEL)
    model, names = ("--model", str(tmp_path / "model.toml")), ("a", "b", "server")
    files = [str(tmp_path / f"{name}.toml") for name in names]
    for name, file in zip(names, files, strict=True):
        who = ("--server", "2") if name == "server" else ("--name", name, "--rate", "2e6", "--memory", "50")
        assert "[model]" in said("profile", "--out", file, *model, *who)
    for solver in ("exact", "genetic"):
        table = json.loads(said("advise", *files, "--json", "--solver", solver))
        assert [row["device"] for row in table["devices"]] == ["a", "b"]
        assert sum(part["seconds"] for part in table["parts"]) == pytest.approx(table["seconds"])
    assert "an iteration takes" in said("advise", *files, "--out", str(tmp_path / "drawn"))
    assert (tmp_path / "drawn" / "timeline.png").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["profile"], "needs either --out FILE"),
        (["profile", "--out", "x", "--serve", "1"], "needs either --out FILE"),
        (["profile", "--out", "x"], "needs --peer HOST:PORT"),
        (["profile", "--out", "x", "--rate", "-1"], "--rate -1: is not between 0 and 1e15"),
        (["profile", "--out", "x", "--rate", "1", "--memory", "nan"], "--memory nan: is not between 0 and 1e15"),
        (["profile", "--out", "x", "--rate", "1", "--name", "A b"], "--name 'A b'"),
        (["profile", "--out", "x", "--rate", "1", "--model", "none.toml"], "none.toml: there is no such device file"),
        (["profile", "--out", "x", "--peer", "here"], "--peer here: is not HOST:PORT"),
        (["advise", "none.toml"], "none.toml: there is no such device file"),
        (["advise", "none.toml", "--solver", "best"], "--solver best: must be exact or genetic"),
        (["advise", "none.toml", "--mode", "best"], "--mode best: must be corrected or authors"),
    ],
)
def test_what_is_wrong_is_told(args: list[str], words: str) -> None:
    error = said(*args)
    assert isinstance(error, RecipeError)
    assert words in str(error)
