"""GANs refined on images that were drawn from the generators of silos whose images are alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from manyhands import Experiment, Local, Message
from manyhands.errors import ManyhandsError
from manyhands.links.coordinator import RoundCoordinator
from manyhands.methods.gans import similarity
from manyhands.methods.gans.pflgan import PFLGan, PFLGanServer
from manyhands.tensors import strip_prefix
from tests.methods.huscf.test_method import SMALL, gan_silos, trained, two_domains

TRAINING = {"batch": 4, "steps": 5, "learning_rate": 1e-3}


def pflgan(**options: Any) -> PFLGan:
    base = {"model": SMALL, "training": TRAINING, "rounds": 3, "every": 1, "temperature": 10.0}
    return PFLGan.model_validate({**base, **options})


@pytest.mark.parametrize("options", [{"share": 0.0}, {"every": 3}, {"temperature": 1e-6}])
def test_where_nothing_is_handed_out_it_is_local_to_the_bit(options: dict[str, Any]) -> None:
    alone = trained(Local.model_validate({"model": SMALL, "training": TRAINING, "rounds": 3}), gan_silos())
    experiment = trained(pflgan(**options), gan_silos())
    for mine, other in zip(alone.silos, experiment.silos, strict=True):
        for name, tensor in mine.memory.items():
            assert torch.equal(tensor, other.memory[name]), name


def test_what_is_handed_out_is_trained_on() -> None:
    method = pflgan(share=2.0)
    silos = trained(method, gan_silos()).silos
    alone = trained(Local.model_validate({"model": SMALL, "training": TRAINING, "rounds": 3}), gan_silos()).silos
    assert not torch.equal(
        silos[0].memory["weights.generator.0.linear.weight"], alone[0].memory["weights.generator.0.linear.weight"]
    )
    handed = strip_prefix(silos[0].memory, "handed.")
    assert 0 < len(handed["images"]) == len(handed["labels"]) <= 2.0 * 9
    assert handed["images"].dtype == torch.uint8


def test_images_come_of_silos_that_are_alike_and_of_classes_that_they_have() -> None:
    silos = two_domains(4)
    for silo in silos:
        assert silo.images.labels is not None
        silo.images.labels.fill_(1)
    training = {"batch": 16, "steps": 20, "learning_rate": 3e-3}
    method = pflgan(rounds=3, every=2, temperature=0.5, share=1.0, training=training)
    experiment = Experiment(method, silos, device="cpu")
    _, traded, _ = rounds = list(experiment)
    assert [bool(done.contributions) for done in rounds] == [False, True, False]
    assert all(entry["distance"] > 1 and 0.5 < entry["weight"] < 1 for entry in traded.contributions.values())
    server = experiment.server
    assert isinstance(server, PFLGanServer)
    for i, silo in enumerate(silos):
        own, other = (each.images.pixels.float().mean((0, 1, 2)) for each in (silo, silos[1 - i % 2]))
        mean = server.handed[silo.name]["images"].float().mean((0, 1, 2))
        assert (mean - own).norm() < (mean - other).norm()
        assert set(server.handed[silo.name]["labels"].tolist()) == {1}


def test_the_distance_is_that_of_gaussians() -> None:
    rng = torch.Generator().manual_seed(0)
    spread, apart = torch.tensor([1.0, 2.0, 3.0, 0.5]), torch.tensor([3.0, 0.0, -4.0, 0.0])
    x = torch.randn(500, 4, generator=rng).double()
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov(correction=0))).T  # exactly normal
    turned = torch.linalg.qr(torch.randn(4, 4, generator=rng).double())[0]
    y = x * spread @ turned + apart
    along = (x @ turned + 0).double()
    expected = float(apart @ apart + ((spread - 1) ** 2).sum())  # all variances lie along the same directions
    assert float(similarity.frechet(along, y)) == pytest.approx(expected)
    images = {"a": along.reshape(-1, 1, 2, 2), "b": y.reshape(-1, 1, 2, 2)}
    distances, total = similarity.distances(images), float(torch.cat([along, y]).T.cov(correction=0).trace())
    assert distances["a"]["b"] == pytest.approx(expected / total) == pytest.approx(distances["b"]["a"])
    assert distances["a"]["a"] == distances["b"]["b"] == 0
    flat = {name: torch.full((5, 1, 2, 2), value) for name, value in (("a", 0.0), ("b", 1.0))}
    assert similarity.distances(flat)["a"]["b"] == pytest.approx(4)


def test_shares_are_of_one_and_fall_with_distance() -> None:
    assert similarity.shares({"a": 0.0, "b": 0.0}, 1.0) == {"a": 0.5, "b": 0.5}
    shares = similarity.shares({"a": 0.0, "b": 1.0, "c": 900.0}, 1.0)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["a"] > shares["b"] > shares["c"] == pytest.approx(0)


def test_a_generator_that_nobody_asked_for_or_that_knows_nothing_is_refused() -> None:
    def coordinator(every: int) -> RoundCoordinator:
        method = pflgan(every=every)
        return RoundCoordinator(method.server(0, ["s0"]), method.plan(), {"s0": 9})

    weights = {name: t for name, t in SMALL.build(0).state_dict().items() if name.startswith("generator.")}
    facts = {"round": 0, "images": 9, "loss": 1.0, "seen": 9, "flops": 1, "withheld": ""}
    knows, nothing = (weights | {"known": torch.tensor([known, False])} for known in (True, False))
    with pytest.raises(ManyhandsError, match="no generator|none is due"):
        coordinator(2).submit("s0", Message("progress", knows, facts))
    with pytest.raises(ManyhandsError, match="knows no class"):
        coordinator(1).submit("s0", Message("progress", nothing, facts))
    with pytest.raises(ManyhandsError, match="plan"):
        coordinator(1).submit("s0", Message("progress", knows | {"discriminator.0": torch.zeros(1)}, facts))
    coordinator(1).submit("s0", Message("progress", knows, facts))
