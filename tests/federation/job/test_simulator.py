"""A job in FLARE's simulator, with a process for each party: the weights are those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from harness.simulator import has_own_network, simulate
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
SMALL = ["partition.silos=2", "data.limit=80", "evaluation.images=0", "method.rounds=2", "method.training.steps=2"]


def small_recipe() -> Recipe:
    return load_recipe(recipe_path("digits-fedavg"), [*SMALL, "method.model.widths=[8]"])


@pytest.fixture(autouse=True)
def _network_of_its_own() -> None:
    if not has_own_network():
        pytest.skip("FLARE listens on all addresses, and this machine gives a test no network of its own (unshare)")


def test_the_simulator_ends_with_the_weights_of_one_process(tmp_path: Path) -> None:
    recipe = small_recipe()
    simulate(write_job(recipe, tmp_path / "job"), tmp_path / "workspace", SITES)
    for _ in compose(recipe, tmp_path / "alone"):
        pass
    alone = RunFolder(tmp_path / "alone").state()
    between = RunFolder(tmp_path / "workspace/server" / KEPT / RUNS / recipe.name).state()
    assert sha256(between.server) == sha256(alone.server)
    results = tmp_path / "workspace" / "server" / "simulate_job" / RESULTS
    assert len((results / "journal.jsonl").read_text().splitlines()) == recipe.method.rounds
    assert (results / "report.html").exists()
