"""README tells the truth: its blocks run, its figures are the committed ones, its words are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.table import PAGES, with_table

from manyhands import Autoencoder, Diffusion, Latent, Training, UNet
from manyhands.data.partition import AnyPartition
from manyhands.data.sources import AnySource
from manyhands.evaluation.judge import Evaluation
from manyhands.recipe import AnyMethod, Data, Recipe
from manyhands.spec import Spec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)


def test_every_block_runs_in_order(tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for kind, text in BLOCKS:
        lines = [line for line in text.splitlines() if not line.startswith("source ")]
        command = [sys.executable, "-W", "ignore", "-c", text]
        if kind == "bash" and lines[0].startswith("make "):
            command = ["make", "--dry-run", "-C", str(ROOT), *[line.split()[1] for line in lines]]
        elif kind == "bash":
            command = ["bash", "-euc", "\n".join(lines)]
        said = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
        )
        assert said.returncode == 0, f"{text}\n{said.stderr}"
    assert (tmp_path / "digits.png").exists()
    assert (tmp_path / "samples" / "grid.png").exists()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_the_python_of_the_docs_runs(page: Path, tmp_path: Path) -> None:
    for text in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        command = [sys.executable, "-W", "ignore", "-c", text]
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr


def test_the_example_is_short() -> None:
    first = next(text for kind, text in BLOCKS if kind == "python")
    assert len(first.strip().splitlines()) <= 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_committed_results(page: Path) -> None:
    assert with_table(page) == page.read_text(), "run: python -m benchmarks.table"


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_every_field_of_a_recipe_is_documented() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text() + (ROOT / "docs" / "methods.md").read_text()
    unions = [kind for union in (AnySource, AnyPartition, AnyMethod) for kind in union.__origin__.__args__]
    told: list[type[Spec]] = [
        Recipe,
        Data,
        Evaluation,
        *unions,
        *(UNet, Latent, Autoencoder, Training, Diffusion),
    ]
    for spec in told:
        for name in spec.model_fields:
            assert re.search(rf"`[^`]*\b{name}\b[^`]*`|\[{name}\]", text), f"{spec.__name__}.{name} is not documented"
