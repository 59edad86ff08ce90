from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from manyhands import CollaFuse, DiffusionGenerator, Experiment, FedAvg, Sampling, Training, UNet
from manyhands.models import network_cost
from manyhands.models.dit import DiT
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.shipped import recipe_path
from tests.conftest import tiny_silos

DIT = DiT(size=8, channels=1, classes=2, width=16, depth=2, head=8)


def inputs(classes: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([1, 500, 1000]), torch.tensor([0, 1, 2]) if classes else None


def test_it_starts_with_an_output_of_zero_and_initial_weights_are_of_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (DIT.build(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    name = "inner.pos_embed.proj.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert not DIT.build(0)(*inputs()).any()


def test_it_draws_no_numbers_of_its_own_in_training_and_sees_time_and_labels() -> None:
    network = DIT.build(0).train()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(weight.numel()))
    x, t, labels = inputs()
    before = torch.random.get_rng_state()
    out = network(x, t, labels)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(out, network(x, t, labels))
    assert not torch.equal(out, network(x, t - 1 + 1, torch.tensor([1, 1, 2])))
    assert not torch.equal(out, network(x, t.flip(0), labels))


@pytest.mark.parametrize("classes", [0, 2])
def test_silos_train_it_and_its_generator_is_saved_and_loaded(tmp_path: Path, classes: int) -> None:
    model = DIT.model_copy(update={"classes": classes, "size": 4})
    training = Training(batch=4, steps=2, learning_rate=1e-2, checkpointing=True)
    method = FedAvg(model=model, training=training, rounds=2, diffusion={"target": "flow"})
    experiment = Experiment(method, tiny_silos(), device="cpu")
    for _ in experiment:
        pass
    generator = experiment.generator()
    generator.save(tmp_path / "model")
    loaded = DiffusionGenerator.from_pretrained(tmp_path / "model")
    assert torch.equal(generator.sample(2, seed=1), loaded.sample(2, seed=1))


def test_its_cost_is_computed_without_building_it() -> None:
    network = DIT.build(0)
    assert network_cost.weights(DIT) == sum(weight.numel() for weight in network.parameters())
    deep = DIT.model_copy(update={"depth": 4})
    assert 1.9 < network_cost.forward_flops(deep) / network_cost.forward_flops(DIT) < 2.1
    assert network_cost.training_flops(DIT) > 2 * network_cost.forward_flops(DIT)
    assert network_cost.training_memory(DIT, 8) > network_cost.training_memory(DIT, 4)


def test_less_memory_is_foretold_where_features_are_computed_again() -> None:
    plain, again = (network_cost.training_memory(DIT, 16, checkpointing=on) for on in (False, True))
    assert again < 0.6 * plain
    assert network_cost.training_flops(DIT, checkpointing=True) > 1.2 * network_cost.training_flops(DIT)
    fields: dict[str, Any] = {"model": DIT, "rounds": 1, "cut": 0.4}
    whole, parts = (
        CollaFuse(**fields, training=Training(batch=16, steps=1, accumulate=count)).costs("s0", 5, Sampling())
        for count in (1, 4)
    )
    assert parts["memory"] == network_cost.training_memory(DIT, 4) < whole["memory"]


def test_a_recipe_chooses_it_by_its_kind() -> None:
    changes = ["method.model={kind='dit', width=32, depth=2}", "method.diffusion.target='flow'"]
    model = load_recipe(recipe_path("digits-fedavg"), changes).method.image_model
    assert isinstance(model, DiT)
    assert (model.size, model.channels, model.classes) == (8, 1, 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch": 3}, "size 8 is not a multiple of patch = 3"),
        ({"width": 20, "head": 8}, "width 20 is not a multiple of head = 8"),
        ({"width": 10, "head": 5}, "width 10 is not a multiple of 4"),
    ],
)
def test_a_transformer_that_cannot_be_is_an_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiT(**{"size": 8, "channels": 1, "classes": 0, **fields})


def test_it_has_no_way_up_to_share() -> None:
    with pytest.raises(ValueError, match="share is 'up', but a model of kind 'dit' can only be shared with 'all'"):
        FedAvg(model=DIT, training=Training(steps=1), rounds=1, share="up")


def test_collafuse_trains_it_on_both_sides_of_the_cut_of_a_flow() -> None:
    model = DIT.model_copy(update={"size": 4})
    training, flow = Training(batch=4, steps=2, learning_rate=1e-2), {"target": "flow"}
    method = CollaFuse(model=model, training=training, rounds=2, cut=0.4, labels="share", diffusion=flow)
    experiment = Experiment(method, tiny_silos(), device="cpu")
    for _ in experiment:
        pass
    drawn = experiment.drawing("s0").sample(2, sampling=Sampling(sampler="heun", steps=4))
    assert drawn.shape == (2, 1, 4, 4)
    assert torch.isfinite(drawn).all()
    cost = method.costs("s0", 5, Sampling(sampler="heun", steps=10))
    assert cost["draw_flops"] == pytest.approx(7 * network_cost.forward_flops(model))  # 4 steps, but for the last
    assert cost["draw_flops_whole"] == pytest.approx(19 * network_cost.forward_flops(model))


def test_collafuse_takes_a_transformer_or_a_unet_and_names_what_it_does_not_take() -> None:
    fields: dict[str, Any] = {"training": {"steps": 1}, "rounds": 1, "cut": 0.4}
    table = {"size": 4, "channels": 1, "classes": 0}
    assert isinstance(CollaFuse.model_validate({**fields, "model": table}).model, UNet)
    silos = CollaFuse.model_validate({**fields, "model": table, "silo_model": {"kind": "dit", **table}})
    assert isinstance(silos.silo_model, DiT)
    with pytest.raises(ValueError, match="its networks are a 'unet' or a 'dit', not an autoencoder"):
        CollaFuse.model_validate({**fields, "model": {"kind": "autoencoder", "size": 8, "channels": 1}})
    changes = ["method.model={kind='dit', width=32, depth=2}", "method.silo_model={kind='dit', width=16, head=8}"]
    recipe = load_recipe(recipe_path("digits-collafuse"), changes)
    assert isinstance(recipe.method, CollaFuse)
    assert isinstance(recipe.method.local_model, DiT)
    assert (recipe.method.local_model.size, recipe.method.local_model.classes) == (8, 10)
