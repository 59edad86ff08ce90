"""Every method at toy size ends with the bits that it ended with before: moves and renames change no figure.

Bits differ between kinds of processors, so hashes are kept by kind; on a kind that has none, the sizes of the weights
are compared instead. ``python -m tests.test_golden`` writes the hashes of this machine.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from manyhands.models.autoencoder import Autoencoder, TrainedAutoencoder
from manyhands.runs.compose import compose
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.shipped import recipe_path
from manyhands.tensors import snapshot

GOLDEN = Path(__file__).with_name("golden.json")
SMALL = ["partition.silos=3", "data.limit=120", "evaluation.images=0", "method.rounds=3", "method.training.steps=4"]
FEDAVG = ["digits-fedavg", "method.model.widths=[8]"]
HUSCF = ["digits-huscf", "method.model.width=4", "method.training.batch=8"]
COLLAFUSE = ["digits-collafuse", "method.model.widths=[8]", "sampling.steps=3"]
RIVAL = [*HUSCF, "data.size=16", "method.training.batch=16"]
LATENT = [
    "digits-latent", "method.model.unet.widths=[8]", "method.model.autoencoder={widths=[8, 8], latent=2}"
]  # fmt: skip
CASES: dict[str, list[str]] = {
    "fedavg": FEDAVG,
    "fedavg, proximal": [*FEDAVG, "method.proximal=0.1"],
    "fedavg, 4 bits": [*FEDAVG, "method.up={kind='updates', bits=4}", "method.down={kind='updates', bits=8}"],
    "fedavg, half of it": [*FEDAVG, "method.share='up'", "method.participants=2"],
    "fedavg, adam": [*FEDAVG, "method.server_optimizer={kind='adam'}"],
    "fedavg, autoencoder": ["digits-autoencoder", "method.model.widths=[8, 8]"],
    "fedavg, latents": LATENT,
    "local": [*FEDAVG, "method.kind='local'"],
    "central": [*FEDAVG, "method.kind='central'"],
    "collafuse": COLLAFUSE,
    "collafuse, fresh": [*COLLAFUSE, "method.release='fresh'", "method.labels='withhold'"],
    "collafuse, authors'": [*COLLAFUSE, "method.mode='authors'", "method.federate_silos=true"],
    "huscf": HUSCF,
    "huscf, 8 bits": [*HUSCF, "method.bits=8", "method.clusters=2"],
    "mdgan": [*RIVAL, "method.kind='mdgan'"],
    "splitgan": [*RIVAL, "method.kind='splitgan'"],
    "pflgan": [*RIVAL, "method.kind='pflgan'"],
    "hflgan": [*RIVAL, "method.kind='hflgan'"],
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_ends_with_the_bits_that_it_ended_with_before(case: str, tmp_path: Path) -> None:
    golden, hashes = json.loads(GOLDEN.read_text()), run(case, tmp_path)
    assert hashes.pop("size") == pytest.approx(golden["size"][case], rel=1e-2)
    assert hashes == golden["hashes"].get(processor(), {case: hashes})[case]


def run(case: str, folder: Path) -> dict[str, Any]:
    """What a toy run leaves behind, as hashes."""
    name, *changes = CASES[case]
    if name == "digits-latent":
        autoencoder = Autoencoder(size=8, channels=1, widths=(8, 8), latent=2)
        TrainedAutoencoder(autoencoder, snapshot(autoencoder.build(0).state_dict())).save(folder / "autoencoder")
        changes.append(f"method.model.folder='{folder / 'autoencoder'}'")
    recipe = load_recipe(recipe_path(name), [*SMALL, *changes])
    for _ in compose(recipe, folder / "run"):
        pass
    ended = RunFolder(folder / "run")
    state = ended.state()
    weights = [*state.server.values(), *(t for memory in state.memories.values() for t in memory.values())]
    return {
        "weights": contents(weights),
        "released": contents(tensor for store in state.stores.values() for tensor in store.values()),
        "ledger": digest(json.dumps(ended.ledger, sort_keys=True).encode()),
        "model": contents(t for path in sorted(ended.path.rglob("*.safetensors")) for t in load_file(path).values()),
        "size": float(sum(tensor.double().abs().sum() for tensor in weights)),
    }


def contents(tensors: Iterable[Tensor]) -> str:
    """A hash of what tensors hold, whatever they are called."""
    flat = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors)
    return digest("".join(sorted(digest(tensor.numpy().tobytes()) for tensor in flat)).encode())


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@cache
def processor() -> str:
    """All that the last bit of a sum depends on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{model and model[1]}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def write() -> None:
    """Keep what this machine finds beside what others found."""
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"size": {}, "hashes": {}}
    cases = golden["hashes"][processor()] = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            hashes = run(case, Path(folder))
        golden["size"][case] = hashes.pop("size")
        cases[case] = hashes
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write()
