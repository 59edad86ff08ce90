"""What is counted is what would be sent."""

from __future__ import annotations

import torch

from manyhands import Experiment
from manyhands.links.embedded import Embedded
from tests.methods.test_huscf import MIXED, gan_silos, pieces, tiny


def test_a_cut_gan_learns_the_same_when_every_message_is_really_encoded() -> None:
    both = []
    for wire in ("count", "bytes"):
        experiment = Experiment(tiny(cuts=MIXED), gan_silos(), device="cpu", link=Embedded(wire=wire))  # type: ignore[arg-type]
        for _ in experiment:
            pass
        both.append(experiment)
    counted, encoded = both
    assert counted.ledger.entries() == encoded.ledger.entries()
    for i in range(3):
        for name, tensor in pieces(counted, i).items():
            assert torch.equal(tensor, pieces(encoded, i)[name]), name
