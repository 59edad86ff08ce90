"""CollaFuse with a pretrained network and adapters at silos: below the cut, only adapters are trained or averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from manyhands import CollaFuse, Experiment, Silo, Training
from manyhands.errors import RecipeError
from manyhands.methods.distil import Distil
from manyhands.methods.learners.pretrained import COMPARE
from manyhands.models import network_cost
from manyhands.models.state_spec import state_spec_of
from manyhands.runs.recipe_file import parse_recipe
from tests.conftest import tiny_images
from tests.models.toy_pretrained import UNET, of_run, save_run_model

ADAPTER = {"rank": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run_model(tmp_path_factory.mktemp("base") / "model")


def method(folder: Path, **options: Any) -> CollaFuse:
    fields = {"silo_model": of_run(folder, adapter=ADAPTER), "training": Training(batch=4, steps=2), "rounds": 2}
    return CollaFuse(model=UNET, cut=0.4, **{**fields, **options})


def trained(run_method: CollaFuse) -> Experiment:
    silos = [Silo(f"s{i}", tiny_images(count, seed=i, size=8)) for i, count in enumerate((5, 9))]
    experiment = Experiment(run_method, silos, device="cpu")
    for _ in experiment:
        pass
    return experiment


def test_adapters_below_the_cut_stay_at_their_silo(folder: Path) -> None:
    experiment = trained(method(folder))
    names = state_spec_of(of_run(folder, adapter=ADAPTER)).keys()
    kept = [{name: silo.memory[f"weights.{name}"] for name in names} for silo in experiment.silos]
    assert all(not torch.equal(kept[0][name], kept[1][name]) for name in names)
    assert {name for name in experiment.silos[0].memory if name.startswith("weights.")} == {
        f"weights.{n}" for n in names
    }
    assert COMPARE in experiment.method.plan().operations
    assert experiment.generator("s0").sample(2).shape == (2, 1, 8, 8)


def test_adapters_below_the_cut_are_averaged(folder: Path) -> None:
    experiment = trained(method(folder, federate_silos=True))
    update = experiment.method.plan().operations["update"]
    assert update.up.tensors.keys() == state_spec_of(of_run(folder, adapter=ADAPTER)).keys()
    held = [
        [value for name, value in sorted(silo.memory.items()) if name.startswith("held.")] for silo in experiment.silos
    ]
    assert all(torch.equal(one, other) for one, other in zip(*held, strict=True))


def test_what_adapters_cost_is_counted_without_values(folder: Path) -> None:
    whole, adapted = of_run(folder), of_run(folder, adapter=ADAPTER)
    assert network_cost.training_flops(whole) == network_cost.training_flops(UNET)
    assert network_cost.training_memory(whole, 4) == network_cost.training_memory(UNET, 4)
    assert network_cost.training_flops(adapted) < network_cost.training_flops(whole)
    assert network_cost.training_memory(adapted, 4) < network_cost.training_memory(whole, 4)
    assert method(folder).costs("s0", 5, trained(method(folder)).generator("s0").sampling)["weights"] == 512


def test_what_a_silo_model_cannot_be(folder: Path) -> None:
    with pytest.raises(RecipeError, match="distil is for a denoiser of images"):
        method(folder, distil=Distil(steps=2, rounds=1), rounds=3)
    with pytest.raises(ValueError, match="silo_model.*networks are a 'unet' or a 'dit', not a GAN"):
        method(folder, silo_model={"kind": "gan", "size": 8, "channels": 1, "classes": 2})


def test_a_recipe_names_it(folder: Path) -> None:
    fields: dict[str, Any] = {
        "name": "x",
        "data": {"source": "digits", "size": 8, "classes": ["0", "1"]},
        "partition": {"kind": "iid", "silos": 2},
        "method": {
            "kind": "collafuse", "cut": 0.4, "rounds": 1, "training": {"steps": 1}, "model": {"widths": [8]},
            "silo_model": {"kind": "pretrained", "folder": str(folder), "adapter": ADAPTER},
        },
    }  # fmt: skip
    expected = of_run(folder, adapter=ADAPTER, names=("0", "1"))
    assert parse_recipe(fields, "x.toml").method.silo_model == expected  # type: ignore[attr-defined]
    fields["method"]["silo_model"] = {"widths": [8, 8]}
    assert parse_recipe(fields, "x.toml").method.silo_model.kind == "unet"  # type: ignore[attr-defined]
