"""A network that knows its few images by heart gives them away; a fresh one has nothing to give."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manyhands.audit.attacks.membership import levels_above, losses, membership_scores
from manyhands.diffusion.sampling import guided
from manyhands.seed import seeded_globally
from manyhands.silos.local_training import steps
from manyhands.silos.training import Training
from tests.audit.crowd import DIFFUSION, SCHEDULE, cloud, rng

MEMBERS, OTHERS = cloud(8, seed=3), cloud(60, seed=4)


class Small(nn.Module):
    """A denoiser of 4 x 4 images that is told the time."""

    def __init__(self) -> None:
        super().__init__()
        with seeded_globally(0, "small"):
            self.layers = nn.Sequential(
                nn.Linear(17, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 16)
            )

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.layers(torch.cat([x_t.flatten(1), t[:, None] / 1000], 1)).reshape(x_t.shape)


def overfitted() -> Small:
    network, g = Small(), rng()
    training = Training(batch=64, steps=800, learning_rate=3e-3)
    optimiser, many = training.optimiser_of(network, 0.0), MEMBERS.repeat(8, 1, 1, 1)
    for _ in steps(
        network,
        optimiser,
        training.batches(64, g),
        lambda at: DIFFUSION.loss(network, many[at], None, 0, g),
    ):
        pass
    return network.eval()


def scores_of(network: Small) -> dict[str, dict[str, float]]:
    denoiser, eps = guided(network, DIFFUSION, None, 0, 1.0), torch.randn(8, 1, 4, 4, generator=rng(5))
    members, others = (losses(denoiser, SCHEDULE, x_0, [210, 300, 450], eps) for x_0 in (MEMBERS, OTHERS))
    return membership_scores(members, others, rng())


def test_members_of_an_overfitted_network_are_found() -> None:
    scores = scores_of(overfitted())
    assert scores["auc"]["value"] > 0.95
    assert scores["found_at_1_percent"]["value"] > 0.5


def test_a_fresh_network_tells_nothing() -> None:
    scores = scores_of(Small().eval())
    assert scores["auc"]["low"] < 0.5 < scores["auc"]["high"]


def test_levels_are_above_the_cut() -> None:
    for cut in (0, 1, 400, 999):
        levels = levels_above(cut, SCHEDULE)
        assert all(cut < t <= SCHEDULE.steps for t in levels)
        assert levels[0] == cut + 1
