"""GANs averaged within clusters, and now and then over all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from manyhands import Experiment, FedAvg
from manyhands.methods.gans.hflgan import HFLGan, HFLGanServer, direction
from manyhands.tensors import Tensors
from tests.methods.huscf.test_method import SMALL, gan_silos, trained, two_domains

TRAINING = {"batch": 4, "steps": 5, "learning_rate": 1e-3}


def hflgan(**options: Any) -> HFLGan:
    return HFLGan.model_validate({"model": SMALL, "training": TRAINING, "rounds": 3, "regroup": 1, **options})


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("options", [{"clusters": 1}, {"regroup": 4}, {"clusters": 3, "globally": 1}])
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_of_one_cluster_it_is_federated_averaging_to_the_bit(options: dict[str, Any], ema: float) -> None:
    plain = FedAvg.model_validate({"model": SMALL, "training": TRAINING, "rounds": 3, "ema": ema})
    silos = gan_silos()
    silos[0].images = silos[0].images.subset(torch.arange(5).numpy())
    averaged, clustered = trained(plain, silos).server, trained(hflgan(ema=ema, **options), silos).server
    assert isinstance(clustered, HFLGanServer)
    weights = averaged.state_dict()
    for name, tensor in clustered.weights[0].items():
        assert torch.equal(tensor, weights[f"weights.{name}"]), name
    shared = averaged.generator()
    assert shared is not None
    assert same(dict(clustered.generator().weights), dict(shared.weights))


def test_clusters_are_those_that_move_alike_and_a_mean_over_all_makes_them_one() -> None:
    method = hflgan(rounds=4, regroup=2, globally=3, training={"batch": 16, "steps": 10, "learning_rate": 1e-3})
    experiment = Experiment(method, two_domains(), device="cpu")
    server, assigned, models = experiment.server, [], []
    assert isinstance(server, HFLGanServer)
    for done in experiment:
        assigned.append([int(done.contributions[f"s{i}"]["cluster"]) for i in range(6)])
        models.append([server.weights[server.cluster[f"s{i}"]] for i in range(6)])
        for cluster in set(assigned[-1]):
            shares = [entry["weight"] for entry in done.contributions.values() if entry["cluster"] == cluster]
            assert sum(shares) == pytest.approx(1)
    assert assigned == [[0] * 6] + [[0, 1, 0, 1, 0, 1]] * 3
    alike = [[same(each[0], other) for other in each] for each in models]
    assert alike == [[True] * 6, [True, False] * 3, [True] * 6, [True] * 6]  # after round 3, and after the last


def test_a_direction_has_length_one_and_leaves_out_what_norms_have_seen() -> None:
    before = SMALL.build(0).state_dict()
    after = {name: tensor + (0.5 if name.startswith("discriminator.") else 7.0) for name, tensor in before.items()}
    moved = direction(before, after)
    assert float(moved.norm()) == pytest.approx(1)
    assert torch.allclose(moved, moved[0].expand_as(moved))
    after |= {name: tensor + 9 for name, tensor in after.items() if "running" in name}
    assert torch.equal(direction(before, after), moved)
    assert float(direction(before, before).norm()) == 0
