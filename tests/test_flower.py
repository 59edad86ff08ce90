"""The example of a Flower app. `make flower` installs Flower beside .venv and runs the slow tests of this file."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

APP = Path(__file__).parents[1] / "examples" / "flower"
PROJECT = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]


def text_of(name: str) -> str:
    return (APP / name).read_text()


def test_its_files_name_what_is_there() -> None:
    for component in PROJECT["components"].values():
        module, name = component.split(":")
        assert f"\n{name} = " in text_of(f"{module}.py")
    sent, handled = re.findall(r'"query\.(\w+)"', text_of("server_app.py")), r'@app\.query\("(\w+)"\)'
    assert set(sent) == set(re.findall(handled, text_of("client_app.py")))
    assert set(re.findall(r'config\["(\w+)"\]', text_of("server_app.py"))) == PROJECT["config"].keys()
    for name in re.findall(r'with_name\("(.+?)"\)', text_of("client_app.py")):
        assert (APP / name).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["digits-fedavg", "digits-collafuse"])
def test_over_flower_a_run_ends_with_the_weights_of_one_process(tmp_path: Path, recipe: str) -> None:
    if importlib.util.find_spec("flwr") is None:
        pytest.skip("Flower is not installed: make flower installs it beside .venv, and runs this test")
    run = [sys.executable, str(APP / "run.py"), recipe, str(tmp_path / "out")]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "the weights are the same" in ended.stdout
