"""The figures of federated adapters, against the ledger and against products that are multiplied out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manyhands import Dirichlet, Experiment, FedAvg, Local, Training, split
from manyhands.links.in_process import InProcess
from manyhands.methods.adapter_figures import naive_bias, round_bytes
from manyhands.models.adapters import A, B
from tests.conftest import tiny_images
from tests.models.toy_pretrained import of_run, save_run_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run_model(tmp_path_factory.mktemp("base") / "model")


def trained(method: Any, **options: Any) -> Experiment:
    silos = split(tiny_images(40, size=8), Dirichlet(silos=3, alpha=0.5), 0)
    experiment = Experiment(method, silos, device="cpu", **options)
    for _ in experiment:
        pass
    return experiment


def test_the_bias_is_that_of_products_multiplied_out_by_hand(folder: Path) -> None:
    adapter = {"rank": 2, "kind": "naive", "targets": ["to_q", "to_v"]}
    local = Local(
        model=of_run(folder, adapter=adapter), training=Training(batch=4, steps=4, learning_rate=0.1), rounds=1
    )
    silos = trained(local).silos
    total, wrong, right = sum(len(silo.images) for silo in silos), 0.0, 0.0
    for name in [name for name in silos[0].memory if name.startswith("weights.") and name.endswith(A)]:
        a = [silo.memory[name].double() * len(silo.images) / total for silo in silos]
        b = [silo.memory[name.replace(A, B)].double() for silo in silos]
        exact = sum(right @ left for left, right in zip(a, b, strict=True))
        naive = sum(one * len(silo.images) / total for one, silo in zip(b, silos, strict=True)) @ sum(a)
        wrong, right = wrong + float((naive - exact).square().sum()), right + float(exact.square().sum())
    assert naive_bias(silos) == pytest.approx((wrong / right) ** 0.5)
    assert naive_bias(silos) > 0.01
    assert naive_bias([silos[0]]) < 1e-6


@pytest.mark.parametrize("adapter", [None, {"rank": 2}, {"rank": 1, "kind": "stacked"}])
def test_bytes_of_a_round_are_those_of_the_ledger(folder: Path, adapter: object) -> None:
    method = FedAvg(model=of_run(folder, adapter=adapter), training=Training(batch=4, steps=1), rounds=2)
    entries = trained(method, link=InProcess(wire="bytes")).ledger.entries()
    expected, names = round_bytes(method, 3), len(method.spec_of("down+mid+up"))
    for way, bytes_of_one, times in (("up", expected.up, 6), ("down", expected.down, 3)):  # no weights after the last
        sent = sum(entry["bytes"] for entry in entries if (entry["op"], entry["direction"]) == ("update", way))
        assert times * bytes_of_one <= sent <= times * bytes_of_one + 6 * (130 * names + 600)


def test_adapters_are_a_small_part_of_the_whole(folder: Path) -> None:
    training = Training(steps=1)
    whole, ffa, naive = (
        round_bytes(FedAvg(model=of_run(folder, adapter=adapter), training=training, rounds=1), 3)
        for adapter in (None, {"rank": 1}, {"rank": 1, "kind": "naive"})
    )
    assert 2 * ffa.up == naive.up
    assert sum(whole) / sum(ffa) > 50
    eight = FedAvg(model=of_run(folder, adapter={"rank": 1}), training=training, rounds=1, up="updates", down="updates")
    assert sum(whole) / sum(round_bytes(eight, 3)) > 150
