"""Stacked adapters: the mean of products is exact, and what goes down is all silos' factors, or the sum of products."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from manyhands import Experiment, FedAvg, Silo, Training
from manyhands.generators.load import load
from manyhands.links.in_process import InProcess
from manyhands.messages.codec.quantised_updates import Updates
from manyhands.methods.fedavg.stacking import StackedBroadcast, StackedDownlink, StackedMean
from manyhands.models.adapters import DELTA, A, B, is_factor, mean_of_products
from manyhands.models.state_spec import state_spec_of
from manyhands.tensors import Tensors, sha256, zeros
from tests.conftest import tiny_images
from tests.models.toy_pretrained import of_run, save_run_model

SIZES = (7, 12, 5)
ADAPTER = {"rank": 1, "alpha": 2, "kind": "stacked", "targets": ["to_q", "conv1"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run_model(tmp_path_factory.mktemp("base") / "model")


def method(folder: Path, **options: Any) -> FedAvg:
    training = Training(batch=4, steps=2, learning_rate=1e-2)
    return FedAvg(model=of_run(folder, adapter=ADAPTER), training=training, **{"rounds": 3, **options})


def trained(run_method: FedAvg, rounds: int = 99, **more: Any) -> Experiment:
    silos = [Silo(f"s{i}", tiny_images(count, seed=i, size=8)) for i, count in enumerate(SIZES)]
    experiment = Experiment(run_method, silos, device="cpu", **more)
    for _, _ in zip(experiment, range(rounds), strict=False):
        pass
    return experiment


def sums(experiment: Experiment) -> Tensors:
    state = experiment.server.state_dict()
    return {name.removeprefix("weights."): state[name] for name in state if name.startswith("weights.")}


def test_the_server_adds_the_exact_mean_of_products_and_silos_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[tuple[Mapping[str, torch.Tensor], int]] = []
    add = StackedMean.add
    monkeypatch.setattr(StackedMean, "add", lambda self, sent, n: came.append((dict(sent), n)) or add(self, sent, n))
    experiment = trained(method(folder))
    assert [weight for _, weight in came] == [*SIZES] * 3
    expected: dict[str, torch.Tensor] = {}
    for start in range(0, 9, 3):
        factors, weights = zip(*came[start : start + 3], strict=True)
        for layer, product in mean_of_products(factors, weights).items():
            expected[layer + DELTA] = expected.get(layer + DELTA, 0) + 2 * product  # alpha / rank
    assert sums(experiment).keys() == expected.keys()
    for name, value in sums(experiment).items():
        assert torch.allclose(value.double(), expected[name], atol=1e-7)
        assert torch.linalg.matrix_rank(value.flatten(1).double(), rtol=1e-5) > 3  # of nine factors, not of three
    held = {name: experiment.silos[0].memory[f"held.{name}"] for name in expected}
    earlier = trained(method(folder, rounds=2))
    assert sha256(held) == sha256(sums(earlier))  # what it had before the last round's mean
    for first, second in ((0, 3), (3, 6)):  # each round has a new A
        assert not any(torch.equal(came[first][0][name], came[second][0][name]) for name in came[0][0])


def test_a_round_goes_down_as_the_factors_of_all_silos_while_that_is_smaller(folder: Path) -> None:
    spec = state_spec_of(of_run(folder, adapter=ADAPTER))
    downlink = method(folder).downlink
    assert isinstance(downlink, StackedDownlink)
    one = sum(tensor.size for tensor in downlink.factors.values())
    dense = sum(tensor.size for tensor in downlink.every.values())
    assert spec.keys() == downlink.factors.keys() | downlink.every.keys()
    assert downlink.max_rank * one < dense <= (downlink.max_rank + 1) * one
    for count in (2, downlink.max_rank, downlink.max_rank + 1):
        expected = 4 * min(count * one, dense)
        assert downlink.bytes(1.0, count) == expected
        mean = StackedMean()
        for _ in range(count):
            mean.add(downlink.adapter.fresh(spec, 0), 1)
        broadcast = StackedBroadcast(downlink, 0, zeros(downlink.every)).next(mean.value())
        kind = broadcast.kind(0)
        assert kind == ("step" if count <= downlink.max_rank else "whole")
        assert 4 * sum(tensor.numel() for tensor in broadcast.wire(kind).values()) == expected
        assert broadcast.kind(-1) == "whole"  # one who comes new
    assert downlink.bytes(0.0, 2) == 4 * dense


def test_the_ledger_has_the_bytes_of_factors(folder: Path) -> None:
    experiment = trained(method(folder, rounds=2), link=InProcess(wire="bytes"))
    one = 4 * sum(spec.size for name, spec in state_spec_of(of_run(folder, adapter=ADAPTER)).items() if is_factor(name))
    header = 120 * len(method(folder).spec_of("down+mid+up")) + 600
    entries = {
        (entry["op"], entry["direction"]): entry for entry in experiment.ledger.entries() if entry["silo"] == "s0"
    }
    up, down, join = entries["update", "up"], entries["update", "down"], entries["join", "down"]
    assert 2 * one <= up["bytes"] <= 2 * (one + header)
    assert 3 * one <= down["bytes"] <= 3 * one + 2 * header  # one of two answers has weights, those of three silos
    assert join["bytes"] <= header  # nothing is trained yet


@pytest.mark.parametrize(
    "options", [{"ema": 0.5, "proximal": 0.1}, {"participants": 2, "up": "float16", "down": "float16"}]
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, folder: Path, options: dict[str, Any]) -> None:
    whole = trained(method(folder, **options))
    trained(method(folder, **options), 2, folder=tmp_path / "cut")
    on = trained(method(folder, **options), folder=tmp_path / "cut", resume=True)
    assert sha256(sums(on)) == sha256(sums(whole))
    assert torch.equal(on.generator().sample(2), whole.generator().sample(2))


def test_what_is_exported_is_a_plain_unet_with_the_products_added(tmp_path: Path, folder: Path) -> None:
    from diffusers import UNet2DModel

    generator = trained(method(folder)).generator()
    images = generator.sample(2)
    generator.save(tmp_path / "model")
    assert torch.allclose(load(tmp_path / "model").sample(2), images, atol=1e-5)  # type: ignore[union-attr]
    base, plain = (
        UNet2DModel.from_pretrained(path / "unet", low_cpu_mem_usage=False) for path in (folder, tmp_path / "model")
    )
    before, after = base.state_dict(), plain.state_dict()
    adapted = {name.removesuffix(DELTA) + ".weight": value for name, value in generator.weights.items()}
    for name, weight in before.items():
        assert torch.allclose(after[name], weight + adapted.get(f"inner.{name}", 0), atol=1e-7)
    assert len(adapted) == sum(name.endswith(A) for name in state_spec_of(of_run(folder, adapter=ADAPTER)))
    assert not any(name.endswith(B) for name in after)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"share": "up"}, "share has nothing to go on from; use 'ffa'"),
        ({"server_optimizer": "momentum"}, "server_optimizer has nothing to go on from"),
        ({"keep_optimiser": True}, "keep_optimiser has nothing to go on from"),
        ({"up": Updates()}, "a codec of differences has nothing that it differs from; use 'float16' or 'ffa'"),
        ({"down": "weights"}, "down is a codec of floats"),
    ],
)
def test_what_factors_that_are_new_in_each_round_cannot_have(folder: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        method(folder, **options)
