"""A wrong devices file is refused, with the place and the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from manyhands.errors import RecipeError
from manyhands.placement.devices import load_devices

SERVER = "[server]\ngflops = 10\nrate = 1e6\n"
ONE = "[devices.one]\ngflops = 1\nrate = 1e6\n"
SHORT = "[devices.one.blocks]\ngenerator = [1.0, 2.0]\n"


def written(folder: Path, *texts: str) -> list[Path]:
    paths = [folder / f"{i}.toml" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([ONE], "server: is missing"),
        ([SERVER], "there is no device"),
        ([SERVER + ONE, ONE], "1.toml: devices.one: is in another file"),
        (["batch = 32\n" + SERVER + ONE, "batch = 64\n" + ONE.replace("one", "two")], "1.toml: batch: differs from"),
        ([SERVER + ONE, SERVER.replace("10", "20")], "1.toml: server: differs from that of"),
        ([SERVER.replace("rate = 1e6\n", "") + ONE], "neither devices.one.down nor server.rate"),
        ([SERVER + ONE + SHORT], "devices.one.blocks.generator has 2 speeds, but the model has 5 blocks"),
        ([SERVER + ONE + SHORT.replace("2.0", "0")], "blocks.generator.1: is 0, but"),
        ([SERVER + ONE + SHORT.replace("generator", "critic")], "devices.one.blocks"),
        ([SERVER + ONE.replace("rate", "ratte")], "did you mean 'rate'?"),
        ([SERVER + ONE.replace("gflops = 1", "gflops = -1")], "devices.one.gflops: is -1"),
        ([SERVER + ONE + "latency = -1\n"], "devices.one.latency: is -1"),
        (["[server\n"], "is not a TOML file"),
    ],
)
def test_a_wrong_file_is_refused_with_a_reason(texts: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words.replace("[", r"\[")):
        load_devices(written(tmp_path, *texts))
    with pytest.raises(RecipeError, match="there is no such device file"):
        load_devices([tmp_path / "none.toml"])


def test_files_together_are_one(tmp_path: Path) -> None:
    model = "batch = 16\n[model]\nsize = 16\nchannels = 3\nclasses = 2\n"
    two = ONE.replace("one", "two")
    apart = written(tmp_path, model + ONE, SERVER + two)
    whole = tmp_path / "whole.toml"
    whole.write_text(model + SERVER + ONE + two)
    assert load_devices(apart) == load_devices([whole])
