"""Pretrained models over silos: what is trained travels, what is frozen stays and is compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manyhands import Experiment, FedAvg, Local, Message, Silo, Training
from manyhands.diffusion.objective import Diffusion
from manyhands.diffusion.schedule import Schedule
from manyhands.errors import CheckpointError, Reason, RecipeError, Refused
from manyhands.links.in_process import InProcess
from manyhands.messages.codec.quantised_updates import Updates
from manyhands.methods.baselines import LocalServer
from manyhands.methods.learners.pretrained import COMPARE, HASH, PretrainedServer, differences
from manyhands.models.adapters import Adapter
from manyhands.models.state_spec import state_spec_of
from manyhands.tensors import sha256
from tests.conftest import tiny_images
from tests.models.toy_pretrained import of_run, save_run_model

TRAINING = Training(batch=4, steps=2, learning_rate=1e-2)
SIZES = (7, 12, 5)
FFA, NAIVE = {"rank": 2}, {"rank": 2, "kind": "naive"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run_model(tmp_path_factory.mktemp("base") / "model")


def silos() -> list[Silo]:
    return [Silo(f"s{i}", tiny_images(count, seed=i, size=8)) for i, count in enumerate(SIZES)]


def method(folder: Path, adapter: object = FFA, **options: Any) -> FedAvg:
    return FedAvg(model=of_run(folder, adapter=adapter), training=TRAINING, **{"rounds": 2, **options})


def trained(run_method: Any, **more: Any) -> Experiment:
    experiment = Experiment(run_method, silos(), device="cpu", **more)
    for _ in experiment:
        pass
    return experiment


def state(experiment: Experiment) -> dict[str, torch.Tensor]:
    return dict(experiment.server.state_dict())


@pytest.mark.parametrize("adapter", [None, FFA, NAIVE])
def test_rounds_carry_what_is_trained_and_leave_the_rest_alone(folder: Path, adapter: object) -> None:
    run_method = method(folder, adapter)
    experiment = trained(run_method, link=InProcess(wire="bytes"))
    size = 4 * sum(spec.size for spec in state_spec_of(run_method.model).values())
    up = [entry for entry in experiment.ledger.entries() if (entry["op"], entry["direction"]) == ("update", "up")]
    sent, messages = sum(entry["bytes"] for entry in up), sum(entry["messages"] for entry in up)
    assert messages == 2 * len(SIZES)
    names = sum(len(name) + 80 for name in state_spec_of(run_method.model))  # of the header
    assert size <= sent / messages <= size + names + 400
    untrained, network = run_method.model.build(0), experiment.silos[0].device_context.network(run_method.model)
    assert sha256(network.frozen()) == sha256(untrained.frozen())
    assert sha256(network.state_dict()) != sha256(untrained.state_dict())
    assert (COMPARE in run_method.plan().operations) == (adapter is not None)


def test_the_server_has_the_mean_of_what_silos_trained(folder: Path) -> None:
    """The oracle: silos that train alone for a round, averaged by hand."""
    alone = trained(Local(model=of_run(folder, adapter=FFA), training=TRAINING, rounds=1, keep_optimiser=False))
    together = trained(method(folder, rounds=1))
    for name in state_spec_of(together.method.model):
        weights = [silo.memory[f"weights.{name}"] for silo in alone.silos]
        mean = sum(len(silo.images) * w.double() for silo, w in zip(alone.silos, weights, strict=True)) / sum(SIZES)
        assert torch.allclose(state(together)[f"weights.{name}"], mean.float(), atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        {"up": Updates(bits=8), "down": Updates(bits=8), "proximal": 0.1},
        {"share": "up", "ema": 0.5, "up": "float16"},
        {"keep_optimiser": True, "participants": 2, "server_optimizer": "momentum"},
    ],
    ids=["codec and feedback", "personal", "participants"],
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, folder: Path, options: dict[str, Any]) -> None:
    whole = trained(method(folder, **options), folder=tmp_path / "whole")
    next(iter(Experiment(method(folder, **options), silos(), folder=tmp_path / "cut", device="cpu")))
    on = trained(method(folder, **options), folder=tmp_path / "cut", resume=True)
    assert sha256(state(on)) == sha256(state(whole))
    for silo in [silo.name for silo in whole.silos] if "share" in options else [None]:
        assert torch.equal(on.generator(silo).sample(2), whole.generator(silo).sample(2))


def test_personal_adapters_stay_at_home(folder: Path) -> None:
    experiment = trained(method(folder, share="up"), link=InProcess(wire="bytes"))
    assert experiment.server.generator() is None
    part_of = experiment.method.model.part_of
    held = [{name: silo.memory[f"held.{name}"] for name in state_spec_of(experiment.method.model)}
            for silo in experiment.silos]  # fmt: skip
    for name in held[0]:
        assert torch.equal(held[0][name], held[1][name]) == (part_of(name) == "up")
    assert not any("down_blocks" in name for name in experiment.method.plan().operations["update"].up.tensors)


def test_a_silo_with_other_frozen_weights_is_refused_by_name(tmp_path: Path, folder: Path) -> None:
    server = PretrainedServer(of_run(folder, adapter=FFA), LocalServer(1, 0))
    server.validate("s1", Message(COMPARE, {}, {"hash": server.hash}))
    other = save_run_model(tmp_path / "model", seed=4)
    [digest] = [of_run(path, adapter=adapter).build(0).frozen_hash for path, adapter in ((other, FFA),)]
    with pytest.raises(Refused, match="the frozen weights of s1 have the hash .*; s1 needs the same files") as refusal:
        server.validate("s1", Message(COMPARE, {}, {"hash": digest}))
    assert refusal.value.reason is Reason.OTHER_WEIGHTS
    assert of_run(folder, adapter={**FFA, "seed": 1}).build(0).frozen_hash != server.hash


def test_a_run_does_not_go_on_from_another_folder(tmp_path: Path) -> None:
    base = save_run_model(tmp_path / "model")
    next(iter(Experiment(method(base), silos(), folder=tmp_path / "run", device="cpu")))
    save_run_model(tmp_path / "model", seed=4)
    with pytest.raises(CheckpointError, match="frozen weights are not those that the run started with"):
        trained(method(base), folder=tmp_path / "run", resume=True)
    server = PretrainedServer(of_run(base, adapter=FFA), LocalServer(1, 0))
    with pytest.raises(CheckpointError):
        server.load_state_dict({HASH: torch.zeros(32, dtype=torch.uint8)})


def test_a_diffusion_that_the_model_was_not_trained_with_warns(folder: Path) -> None:
    assert method(folder).warnings({}) == []
    warned = method(folder, diffusion=Diffusion(target="eps", schedule=Schedule(kind="linear"))).warnings({})
    assert [line.split(":")[1].split(" is ")[0] for line in warned] == [" target", " schedule.kind"]
    assert "'eps', but" in warned[0]
    scheduler = {"prediction_type": "sample", "beta_schedule": "scaled_linear", "beta_start": 0.1}
    pairs = differences(Diffusion(schedule=Schedule(kind="scaled-linear")), scheduler)
    assert pairs == [("target", "v", "sample"), ("schedule.beta_start", 1e-4, 0.1)]


def test_images_of_another_size_and_layers_that_are_not_there_end_the_run_with_a_name(folder: Path) -> None:
    small = [replace(silo, images=tiny_images(5)) for silo in silos()]
    with pytest.raises(RecipeError, match="s0: has images of 1 x 4 x 4, the model is for 1 x 8"):
        Experiment(method(folder), small, device="cpu")
    with pytest.raises(RecipeError, match="no layer of the U-Net that can have an adapter is called 'to_x'"):
        Experiment(method(folder, Adapter(targets=("to_x",))), silos(), device="cpu")


@pytest.mark.parametrize("adapter", [None, FFA, NAIVE, {"rank": 2, "kind": "stacked"}])
def test_what_leaves_is_stated_and_the_docs_say_what_a_site_can_cost(folder: Path, adapter: object) -> None:
    plan = method(folder, adapter).plan()
    table = (Path(__file__).parents[3] / "docs" / "deployment.md").read_text().split("| what a site says |")[1]
    for name, operation in plan.operations.items():
        assert operation.outgoing or not operation.up.has_tensors, name
        assert f"`{name}`" in table.split("\n\n")[0], name
    assert all(kind.often and kind.computed(10) and kind.guarantee(10) for kind in plan.outgoing)
