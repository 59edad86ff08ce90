"""The loss of a denoiser of the noisy timesteps that sees only images noised up to a cut, never the clean images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from manyhands.diffusion.objective import Diffusion, NoisePredictor, noised
from manyhands.diffusion.schedule import Schedule
from manyhands.tensors import per_image

Mode = Literal["exact", "authors", "nested"]
"""How images that are already noised up to the cut get more noise. ``exact`` continues the schedule of the images.
``authors`` applies the whole schedule again, at timesteps above the cut. ``nested`` applies it at all timesteps, and so
learns to sample noised images."""


def bridge_loss(
    diffusion: Diffusion,
    network: NoisePredictor,
    x_cut: Tensor,
    cut: Tensor,
    labels: Tensor | None,
    no_label: int,
    rng: torch.Generator,
    mode: Mode = "exact",
    *,
    pairs: bool = False,
) -> Tensor:
    """Return the loss of a denoiser of the timesteps above the ``cut`` of each noised image.

    On any Gaussian path, x_t = alpha_r x_cut + sigma_r eps with alpha_r = alpha_t / alpha_cut and sigma_r^2 = sigma_t^2
    - alpha_r^2 sigma_cut^2 has the distribution of the path at t, as long as the signal-to-noise ratio falls. The whole
    noise of x_t has the expectation E[eps_t | x_t] = k E[eps | x_t] with k = sigma_t / sigma_r, since the covariance of
    eps with eps_t is sigma_r / sigma_t. The clean image has E[x_0 | x_t] = E[x_cut / alpha_cut - alpha_t sigma_cut^2 /
    (alpha_cut^2 sigma_r) eps | x_t], which divides by no alpha_t. So the target is what follows from these two in place
    of eps_t and x_0: k eps, v, or their difference for flow. The minimum of the loss is the ordinary denoiser for every
    t above the cut, for any cut. At cut 0 this is the ordinary loss. (For a schedule of betas, alpha_r = sqrt(r) and
    sigma_r = sqrt(1 - r) with r = alpha_bar_t / alpha_bar_cut.)

    The variance of k eps is k^2, which has no bound near the cut. ``pairs`` uses every image twice, with eps and with
    -eps: near the cut both give nearly the same x_t, and most of the variance cancels. (Measured on MNIST at 16 x 16,
    cut 0.4, error of the clean image just above the cut after 1,000 steps of batch 32: 0.0474 with 16 pairs; 0.0520
    without pairs and with weights 1 / k, its best weights; 0.0425 for a network that sees the clean images. After 3,000
    steps: 0.0393, 0.0406 and 0.0354.)

    Args:
        diffusion: The objective of the denoiser.
        network: The denoiser.
        x_cut: Images that are noised up to their cut, (B, C, H, W).
        cut: The timestep of each image's cut, (B,).
        labels: The class numbers, (B,), or None for an unconditional denoiser.
        no_label: The class number that means no label.
        rng: The random numbers of timesteps, noise and hidden labels.
        mode: How noised images get more noise, see ``Mode``.
        pairs: Whether every image is used twice, with opposite noise.
    """
    t = diffusion.steps(len(x_cut), rng, 0 if mode == "nested" else cut)
    eps = torch.randn(x_cut.shape, generator=rng, device=x_cut.device)
    labels = diffusion.hidden(labels, no_label, rng)
    if pairs:
        x_cut, cut, t, eps = torch.cat([x_cut, x_cut]), torch.cat([cut, cut]), torch.cat([t, t]), torch.cat([eps, -eps])
        labels = None if labels is None else torch.cat([labels, labels])
    start = cut if mode == "exact" else torch.zeros_like(cut)
    alpha_r, sigma_r = bridge(diffusion.schedule, t, start, x_cut)
    expected = target(diffusion, t, start, x_cut, eps=eps, alpha_r=alpha_r, sigma_r=sigma_r)
    error = network(noised(x_cut, eps, alpha_r, sigma_r), t, labels) - expected
    size = error.square() if diffusion.error == "squared" else error.abs()
    return (diffusion.weights(t, x_cut.device) * size.flatten(1).mean(1)).mean()


def bridge(schedule: Schedule, t: Tensor, cut: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha_r and sigma_r at timesteps t above the cut, each (B, 1, 1, 1), see ``bridge_loss``.

    Args:
        schedule: The noise schedule.
        t: The timesteps, (B,).
        cut: The timestep of each image's cut, (B,).
        like: A batch of the device, type and number of dimensions that the result is to multiply, (B, C, H, W).
    """
    dtype = torch.float32 if like.device.type == "mps" else torch.float64  # there is no float64 on MPS
    alpha, sigma = (level.to(like.device, dtype) for level in (schedule.alpha(), schedule.sigma()))
    alpha_r = per_image(alpha[t] / alpha[cut], like)
    sigma_r = (per_image(sigma[t], like).square() - (alpha_r * per_image(sigma[cut], like)).square()).sqrt()
    return alpha_r.to(like.dtype), sigma_r.to(like.dtype)


def target(
    diffusion: Diffusion, t: Tensor, cut: Tensor, x_cut: Tensor, *, eps: Tensor, alpha_r: Tensor, sigma_r: Tensor
) -> Tensor:
    """Return the target of the network, (B, C, H, W). No division by an alpha_t near 0 is made.

    Args:
        diffusion: The objective, with its schedule.
        t: The timesteps, (B,).
        cut: The timestep of each image's cut, (B,).
        x_cut: Images that are noised up to their cut, (B, C, H, W).
        eps: The noise that is added to them, (B, C, H, W).
        alpha_r: What the images are multiplied by, see ``bridge``.
        sigma_r: What the noise is multiplied by.
    """
    alpha, sigma = diffusion.schedule.levels(t, x_cut)
    if diffusion.target == "eps":
        return sigma / sigma_r * eps
    alpha_cut, sigma_cut = diffusion.schedule.levels(cut, x_cut)
    if diffusion.target == "flow":
        return (sigma + alpha * (sigma_cut / alpha_cut).square()) / sigma_r * eps - x_cut / alpha_cut
    return sigma * (alpha_r / alpha) * (alpha_r / sigma_r * eps - x_cut)
