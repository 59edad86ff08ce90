"""Infers whether a denoiser was trained on an image, from its loss on that image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manyhands.audit.attacks.statistics import Interval, auc, bootstrap, true_positives
from manyhands.diffusion.objective import noised
from manyhands.diffusion.schedule import Schedule
from manyhands.diffusion.solvers import DenoisingFunction

FALSE_POSITIVES = 0.01


def levels_above(cut: int, schedule: Schedule, count: int = 5) -> list[int]:
    """Steps of the chain above a cut; more of them near the cut, where the image is still visible."""
    share = torch.linspace(0, 1, count + 1, dtype=torch.float64)[:-1].square()
    return sorted({min(cut + 1 + int(value * (schedule.steps - cut)), schedule.steps) for value in share.tolist()})


@torch.no_grad()
def losses(denoiser: DenoisingFunction, schedule: Schedule, x_0: Tensor, levels: Sequence[int], eps: Tensor) -> Tensor:
    """The mean squared error of the noise that a denoiser predicts for each image, over levels and draws of noise.

    ``eps`` (draws, C, H, W) is the same for all images, so that only the images differ.

    References:
        Are Diffusion Models Vulnerable to Membership Inference Attacks?, Duan et al., 2023, arXiv 2302.01316
        Membership Inference of Diffusion Models, Hu, Pang, 2023, arXiv 2301.09956
    """
    total = torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
    for t in levels:
        for draw in eps:
            x_t = noised(x_0, draw.expand_as(x_0), *schedule.levels(torch.tensor([t]), x_0))
            total += (denoiser(x_t, t)[1] - draw).square().flatten(1).mean(1).double()
    return total / (len(levels) * len(eps))


def membership_scores(members: Tensor, others: Tensor, rng: torch.Generator) -> dict[str, Interval]:
    """How well losses tell members from others: AUC, and the true positive rate at 1 % false positives.

    References:
        Membership Inference Attacks From First Principles, Carlini et al., 2022, arXiv 2112.03570
    """

    def true_positive_rate(positives: Tensor, negatives: Tensor) -> float:
        return true_positives(positives, negatives, FALSE_POSITIVES)

    return {
        "auc": bootstrap(auc, -members, -others, rng=rng),
        "found_at_1_percent": bootstrap(true_positive_rate, -members, -others, rng=rng),
    }
