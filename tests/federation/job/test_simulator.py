"""A job in FLARE's simulator, with a process for each party: the weights are those of one process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from manyhands.federation.job.folder import write_job
from manyhands.federation.kit import KEPT, RESULTS, RUNS
from manyhands.runs.compose import compose
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.shipped import recipe_path
from manyhands.tensors import sha256

pytestmark = pytest.mark.slow

SITES = ("silo-0", "silo-1")
LOOPBACK_ALONE = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
"""FLARE listens on all addresses: in a network of its own nobody else can reach it."""
SMALL = ["partition.silos=2", "data.limit=80", "evaluation.images=0", "method.rounds=2", "method.training.steps=2"]


def small_recipe() -> Recipe:
    return load_recipe(recipe_path("digits-fedavg"), [*SMALL, "method.model.widths=[8]"])


def simulate(job: Path, workspace: Path) -> None:
    (workspace / "local").mkdir(parents=True)
    allowed = {"format_version": 2, "class_allow_list": ["nvflare.", "manyhands.federation.job."]}
    (workspace / "local" / "resources.json").write_text(json.dumps(allowed))
    options = ["-w", str(workspace), "-c", ",".join(SITES), "-t", str(len(SITES))]
    simulator = [sys.executable, "-m", "nvflare.cli", "simulator", str(job), *options]
    subprocess.run([*LOOPBACK_ALONE, *simulator], check=True, capture_output=True, timeout=300)


@pytest.fixture(autouse=True)
def _network_of_its_own() -> None:
    if not shutil.which("unshare") or subprocess.run([*LOOPBACK_ALONE, "true"], check=False).returncode:
        pytest.skip("FLARE listens on all addresses, and this machine gives a test no network of its own (unshare)")


def test_the_simulator_ends_with_the_weights_of_one_process(tmp_path: Path) -> None:
    recipe = small_recipe()
    simulate(write_job(recipe, tmp_path / "job"), tmp_path / "workspace")
    for _ in compose(recipe, tmp_path / "alone"):
        pass
    alone = RunFolder(tmp_path / "alone").state()
    between = RunFolder(tmp_path / "workspace/server" / KEPT / RUNS / recipe.name).state()
    assert sha256(between.server) == sha256(alone.server)
    results = tmp_path / "workspace" / "server" / "simulate_job" / RESULTS
    assert len((results / "journal.jsonl").read_text().splitlines()) == recipe.method.rounds
    assert (results / "report.html").exists()
