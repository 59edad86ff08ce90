"""Reconstructs the image from a release x_t, for attackers with different knowledge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from manyhands.diffusion.objective import Diffusion, NoisePredictor, noised
from manyhands.diffusion.sampling import guided, timesteps
from manyhands.diffusion.schedule import Schedule
from manyhands.diffusion.solvers import DenoisingFunction, denoise
from manyhands.models.unet import UNet
from manyhands.silos.local_training import steps
from manyhands.silos.training import Training

Attack = Callable[[Tensor, int], Tensor]
"""(x_t, t) -> an estimate of x_0 in [-1, 1]; both are (N, C, H, W)."""

RIDGE = 1e-4


def release(schedule: Schedule, x_0: Tensor, t: int, rng: torch.Generator) -> Tensor:
    """Noise the images once, to step t."""
    eps = torch.randn(x_0.shape, generator=rng, device=x_0.device)
    return noised(x_0, eps, *schedule.levels(torch.tensor([t]), x_0))


def averaged(schedule: Schedule, copies: Iterable[Tensor], t: int) -> tuple[Tensor, int]:
    """Combine n releases of the same images at step t into one release, at the step with n times the SNR.

    With fresh noise each time, the mean of the releases is a sufficient statistic. If the noise was the same each time,
    the mean is a copy and holds no more information; taking it for less noisy is then an error of the attacker.
    """
    total, count = torch.zeros(()), 0
    for copy in copies:
        total, count = total + copy, count + 1
    level = level_of(schedule, float(schedule.snr()[t]) * count)
    scale = schedule.alpha()[level] / schedule.alpha()[t]
    return total / count * float(scale), level


def level_of(schedule: Schedule, snr: float) -> int:
    """The step of the chain, 1 or higher, whose SNR is nearest in decibels."""
    return int((schedule.snr()[1:].log() - torch.tensor(snr).log()).abs().argmin()) + 1


def linear(schedule: Schedule) -> Attack:
    """An attack that knows only the noise level: x_t / alpha, clipped to [-1, 1]."""
    return lambda x_t, t: (x_t / schedule.levels(torch.tensor([t]), x_t)[0]).clamp(-1, 1)


def wiener(schedule: Schedule, public: Tensor) -> Attack:
    """The best linear estimate, from the mean and the covariance of public images.

    x_0 = m + alpha C (alpha^2 C + sigma^2 I)^-1 (x_t - alpha m); exact for Gaussian images.

    References:
        Extrapolation, Interpolation, and Smoothing of Stationary Time Series, Wiener, 1949, MIT Press
    """
    flat = public.flatten(1).double()
    centre = flat.mean(0)
    _, singular, axes = torch.linalg.svd(flat - centre, full_matrices=False)
    variances = singular.square() / len(flat) + RIDGE

    def attack(x_t: Tensor, t: int) -> Tensor:
        alpha, sigma = float(schedule.alpha()[t]), float(schedule.sigma()[t])
        coordinates = (x_t.flatten(1).double() - alpha * centre) @ axes.T
        shrunk = alpha * variances / (alpha**2 * variances + sigma**2)
        estimate: Tensor = centre + (coordinates * shrunk) @ axes
        return estimate.to(x_t.dtype).reshape(x_t.shape).clamp(-1, 1)

    return attack


def mean_of(public: Tensor) -> Attack:
    """An attack that ignores the release and returns the mean of public images: the floor of all attacks."""
    centre = public.mean(0)
    return lambda x_t, _: centre.expand_as(x_t)


def denoised(denoiser: DenoisingFunction) -> Attack:
    """A denoiser's estimate in one step: the posterior mean, which minimises the squared error."""

    @torch.no_grad()
    def attack(x_t: Tensor, t: int) -> Tensor:
        return denoiser(x_t, t)[0].clamp(-1, 1)

    return attack


def sampled(denoiser: DenoisingFunction, schedule: Schedule, most: int = 10) -> Attack:
    """Denoise from t down to the image in at most ``most`` DDIM steps, which gives a sharp and likely image.

    References:
        Denoising Diffusion Implicit Models, Song, Meng, Ermon, 2021, arXiv 2010.02502
        Visual Privacy Auditing with Diffusion Models, Schwethelm et al., 2024, arXiv 2403.07588
    """

    def attack(x_t: Tensor, t: int) -> Tensor:
        unused = torch.Generator(x_t.device)
        return denoise(denoiser, x_t, schedule, timesteps(t, 0, most), unused, clip=1.0).clamp(-1, 1)

    return attack


def public_denoiser(
    public: Tensor, diffusion: Diffusion, model: UNet, training: Training, rng: torch.Generator
) -> DenoisingFunction:
    """Train an unconditional denoiser of the whole chain on public images."""
    network = model.build(_seed(rng))
    _fit(network, training, len(public), lambda indices: diffusion.loss(network, public[indices], None, 0, rng), rng)
    return guided(in_parts(network), diffusion, None, 0, 1.0)


def regressor(
    public: Tensor, schedule: Schedule, levels: Sequence[int], model: UNet, training: Training, rng: torch.Generator
) -> Attack:
    """Train a network that predicts x_0 with the least squared error, on public images at these levels only.

    The estimate is what follows from a velocity, the output of the network, so that light noise is easy to remove.
    """
    network, known = model.build(_seed(rng)), torch.tensor(sorted(set(levels)))
    diffusion = Diffusion(schedule=schedule, target="flow" if schedule.kind == "flow" else "v")

    def loss(indices: Tensor) -> Tensor:
        x_0, t = public[indices], known[torch.randint(len(known), (len(indices),), generator=rng)]
        alpha, sigma = schedule.levels(t, x_0)
        x_t = noised(x_0, torch.randn(x_0.shape, generator=rng), alpha, sigma)
        return (diffusion.estimates(network(x_t, t, None), x_t, alpha, sigma)[0] - x_0).square().mean()

    _fit(network, training, len(public), loss, rng)
    return denoised(guided(in_parts(network), diffusion, None, 0, 1.0))


def in_parts(network: NoisePredictor, size: int = 256) -> NoisePredictor:
    """The same network without gradients, applied to at most ``size`` images at a time."""

    def batched(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        starts = range(0, len(x_t), size)
        parts = [slice(start, start + size) for start in starts]
        with torch.no_grad():
            return torch.cat([network(x_t[part], t[part], None if labels is None else labels[part]) for part in parts])

    return batched


def _fit(
    network: nn.Module, training: Training, count: int, loss: Callable[[Tensor], Tensor], rng: torch.Generator
) -> None:
    """Run the local training loop for one round with a falling learning rate."""
    optimiser = training.optimiser_of(network, 0.0)
    batches = list(training.batches(count, rng))
    for done, _ in enumerate(steps(network, optimiser, batches, loss, clip=training.clip), 1):
        optimiser.param_groups[0]["lr"] = training.rate(done / len(batches))
    network.eval()


def _seed(rng: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=rng))
