"""Learning the noisy end of the chain from images that were noised up to a cut, and never from the images."""

from __future__ import annotations

import torch
from torch import Tensor

from manyhands.diffusion.objective import Diffusion, Network, noised
from manyhands.diffusion.schedule import Schedule


def bridge_loss(
    diffusion: Diffusion,
    network: Network,
    x_cut: Tensor,
    cut: Tensor,
    labels: Tensor | None,
    no_label: int,
    rng: torch.Generator,
) -> Tensor:
    """The error of a network that learns the chain above the ``cut`` of each of the noised images.

    With r = alpha_bar_t / alpha_bar_cut, x_t = sqrt(r) x_cut + sqrt(1 - r) eps is distributed as the chain has it at t,
    and k E[eps | x_t], k = sqrt((1 - alpha_bar_t) / (1 - r)), is what is to be expected of the whole noise of x_t. So
    the network's noise is held against k eps, at a weight of 1 / k^2: at its best it is the ordinary denoiser for every
    t above the cut, whatever that was.
    """
    t = diffusion.steps(len(x_cut), rng, cut)
    eps = torch.randn(x_cut.shape, generator=rng, device=x_cut.device)
    labels = diffusion.hidden(labels, no_label, rng)
    alpha_r, sigma_r = bridge(diffusion.schedule, t, cut, x_cut)
    alpha, sigma = diffusion.schedule.levels(t, x_cut)
    x_t = noised(x_cut, eps, alpha_r, sigma_r)
    _, said = diffusion.estimates(network(x_t, t, labels), x_t, alpha, sigma)
    error = said * (sigma_r / sigma) - eps
    return (diffusion.weights(t, x_cut.device) * error.square().flatten(1).mean(1)).mean()


def bridge(schedule: Schedule, t: Tensor, cut: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(r) and sqrt(1 - r) at steps t above the cut, shaped to multiply a batch like the given one."""
    alpha_bar = schedule.alpha_bar().to(like.device)
    r = (alpha_bar[t] / alpha_bar[cut]).reshape(-1, *[1] * (like.dim() - 1))
    return r.sqrt().to(like.dtype), (1 - r).sqrt().to(like.dtype)
