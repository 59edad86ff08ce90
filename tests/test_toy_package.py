"""A package that registers a method, a model and a source: recipes, evaluate and sample know them by their kinds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from safetensors.torch import load_file

TOY = Path(__file__).parent / "toy_package"
RECIPE = """
device = "cpu"
[data]
source = "toy_stripes"
size = 8
[partition]
kind = "iid"
silos = 3
[method]
kind = "toy_median"
rounds = 2
[method.model]
kind = "toy_mixer"
width = 8
[method.training]
batch = 8
steps = 2
[sampling]
steps = 2
[evaluation]
images = 12
cas = false
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder for Python's path that has the package as pip would install it."""
    site, project = tmp_path / "site", tomllib.loads((TOY / "pyproject.toml").read_text())["project"]
    info = site / "toy_package-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(TOY / "toy_package.py", site)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{kind} = {at}\n" for kind, at in of.items()) for group, of in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return site


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(RECIPE)
    return path


def manyhands(*words: str, where: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with the package on its path or without it."""
    python = os.pathsep.join(filter(None, [str(site) if site else "", os.environ.get("PYTHONPATH", "")]))
    line = [sys.executable, "-m", "manyhands", *words]
    return subprocess.run(line, cwd=where, env=os.environ | {"PYTHONPATH": python}, capture_output=True, text=True)


@pytest.mark.slow
def test_what_it_registers_is_run_evaluated_and_sampled(installed: Path, recipe: Path) -> None:
    where = recipe.parent
    ran = manyhands("run", "toy.toml", "--out", "run", where=where, site=installed)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((where / "run" / "report.json").read_text())
    assert report["rounds"] == 2
    resolved = tomllib.loads((where / "run" / "recipe.toml").read_text())
    assert resolved["method"]["kind"] == "toy_median"
    assert resolved["method"]["model"] == {
        "kind": "toy_mixer", "size": 8, "channels": 1, "classes": 2, "width": 8
    }  # fmt: skip
    assert resolved["data"]["source"] == {"kind": "toy_stripes", "count": 60}
    evaluated = manyhands("evaluate", "run", "--images", "12", "--no-cas", "--json", where=where, site=installed)
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["metrics"]["fid"] > 0
    sampled = manyhands("sample", "run", "--count", "4", "--out", "drawn", where=where, site=installed)
    assert sampled.returncode == 0, sampled.stderr
    assert load_file(where / "drawn" / "samples.safetensors")["images"].shape == (4, 1, 8, 8)
    missing = manyhands("sample", "run", "--out", "again", where=where)
    assert missing.returncode == 2
    assert "run: method: kind 'toy_median' is not known" in missing.stderr
    assert "Traceback" not in missing.stderr


@pytest.mark.slow
def test_without_it_the_recipe_says_what_is_missing(recipe: Path) -> None:
    missing = manyhands("run", "toy.toml", where=recipe.parent)
    assert missing.returncode == 2
    assert "data.source: kind 'toy_stripes' is not known" in missing.stderr
    assert "method: kind 'toy_median' is not known" in missing.stderr
    assert "Traceback" not in missing.stderr
