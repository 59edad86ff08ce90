"""Low-rank adapters: what their factors multiply to, and what means of them are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manyhands import UNet
from manyhands.errors import RecipeError
from manyhands.models.adapters import A, Adapter, B, averaging_bias, mean_of_products, products, stacked
from manyhands.models.pretrained import PretrainedModule
from manyhands.tensors import Tensors, WeightedMean
from tests.models.toy_pretrained import of_run, save_run_model

TARGETS = ("to_q", "to_out.0", "conv1")
SHARES = [5, 9, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run_model(tmp_path_factory.mktemp("base") / "model")


def network(folder: Path, kind: str, **options: object) -> PretrainedModule:
    return of_run(folder, adapter={"kind": kind, "rank": 2, "alpha": 3, "targets": TARGETS, **options}).build(0)


def factors(net: PretrainedModule, seed: int, *, equal_a: bool = False) -> Tensors:
    """Random factors of each adapted layer."""
    rng = torch.Generator().manual_seed(seed)
    every = {name: value for name, value in net.inner.state_dict().items() if name.endswith((A, B))}
    return {
        name: value.clone() if equal_a and name.endswith(A) else torch.randn(value.shape, generator=rng)
        for name, value in every.items()
    }


def call(net: torch.nn.Module) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return net.eval()(torch.randn(3, 1, 8, 8, generator=rng), torch.tensor([1, 50, 900]), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("kind", ["ffa", "naive", "stacked"])
def test_a_fresh_adapter_changes_no_bit(folder: Path, kind: str) -> None:
    plain = of_run(folder).build(0)
    assert torch.equal(call(network(folder, kind)), call(plain))


def test_a_product_is_what_the_layer_adds_and_alpha_scales_it(folder: Path) -> None:
    net = network(folder, "naive")
    trained = factors(net, 1)
    net.inner.load_state_dict(trained, strict=False)
    for name, value in products(trained, net.spec.adapter.scaling).items():  # type: ignore[union-attr]
        added = net.inner.get_submodule(name).get_delta_weight("default")
        assert value.shape == added.shape
        assert torch.allclose(value.float(), added, atol=1e-5)
    merged = type(net.inner).from_config(net.folder.unet_config)
    merged.load_state_dict(net.merged())
    plain = UNet(size=8, channels=1, classes=2, widths=(8, 16), attention=True).build(0)
    plain.inner = merged
    assert torch.allclose(call(net), call(plain), atol=1e-5)
    assert not torch.allclose(call(net), call(of_run(folder).build(0)), atol=1e-2)


def test_ffa_trains_b_alone_and_a_is_that_of_its_seed(folder: Path) -> None:
    one, other = network(folder, "ffa"), network(folder, "ffa", seed=1)
    assert all(name.endswith(B) for name in one.state_dict())
    assert {name for name, weight in one.named_parameters() if weight.requires_grad} == set(one.state_dict())
    assert one.frozen_hash == network(folder, "ffa").frozen_hash != other.frozen_hash


def test_layers_that_are_trained_whole_travel_beside_the_adapters(folder: Path) -> None:
    plain, both = network(folder, "ffa"), network(folder, "ffa", whole=["class_embedding", "norm1"])
    beside = set(both.state_dict()) - set(plain.state_dict())
    assert {name.split(".")[-2] for name in beside} == {"class_embedding", "norm1"}
    assert {name for name, weight in both.named_parameters() if weight.requires_grad} == set(both.state_dict())
    assert not beside & set(both.frozen())


def test_with_equal_a_the_mean_of_products_is_the_product_of_the_mean(folder: Path) -> None:
    silos = [factors(network(folder, "ffa"), seed, equal_a=True) for seed in range(3)]
    mean = WeightedMean()
    for one, share in zip(silos, SHARES, strict=True):
        mean.add(one, share)
    exact, of_mean = mean_of_products(silos, SHARES), products(mean.value())
    assert all(torch.allclose(of_mean[layer], exact[layer], atol=1e-5) for layer in exact)
    assert averaging_bias(silos, SHARES) < 1e-6


def test_stacking_is_the_mean_of_products_and_the_naive_mean_is_not(folder: Path) -> None:
    silos = [factors(network(folder, "naive"), seed) for seed in range(3)]
    stack, exact = stacked(silos, SHARES), mean_of_products(silos, SHARES)
    layer, pairs = "mid_block.attentions.0.to_q", list(zip(silos, SHARES, strict=True))
    by_hand = sum(share * one[layer + B].double() @ one[layer + A].double() for one, share in pairs)
    assert torch.allclose(exact[layer], by_hand / sum(SHARES))
    assert all(torch.allclose(value, exact[layer], atol=1e-5) for layer, value in products(stack).items())
    assert {stack[name].shape[0] for name in stack if name.endswith(A)} == {6}  # the rank is that of all silos
    assert averaging_bias(silos, SHARES) > 0.5
    assert averaging_bias([silos[0]] * 3, SHARES) < 1e-6


def test_a_layer_that_is_not_there_is_named_with_the_nearest(folder: Path) -> None:
    for target, hint in (("to_qq", "'to_q'"), ("conv_11", "'conv1'"), ("zzz", "known: .*to_out.0")):
        with pytest.raises(RecipeError, match=rf"adapter.targets: no layer .* '{target}'; .*{hint}"):
            network(folder, "ffa", targets=["to_k", target])
    with pytest.raises(RecipeError, match=r"adapter.whole: no layer .* that has weights is called 'norms1'; .*'norm1'"):
        network(folder, "ffa", whole="norms1")
    with pytest.raises(RecipeError, match=r"adapter.rank: is 100, but no layer in targets has a rank above 16"):
        network(folder, "ffa", rank=100)
    convolutional = save_run_model(folder.parent / "plain", UNet(size=8, channels=1, classes=2, widths=(8, 8)))
    with pytest.raises(RecipeError, match="called 'to_q'; .*conv1"):  # attention is the default
        of_run(convolutional, adapter={}).build(0)


def test_fields_of_an_adapter() -> None:
    assert Adapter().scaling == 1
    assert Adapter(rank=8, alpha=4).scaling == 0.5
    assert Adapter(targets="to_q").targets == ("to_q",)  # type: ignore[arg-type] # as a recipe may say it
    with pytest.raises(RecipeError, match="rank"):
        Adapter(rank=0)
    with pytest.raises(RecipeError, match="whole is for kind 'ffa' or 'naive'"):
        Adapter(kind="stacked", whole=("norm1",))
    with pytest.raises(RecipeError, match="kind: is 'lora', but"):
        Adapter(kind="lora")  # type: ignore[arg-type]


def test_without_peft_an_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(RecipeError, match=r"needs the package peft: pip install 'manyhands\[adapters\]'"):
        network(folder, "ffa")
