"""What one noised release of an image gives away, as local differential privacy has it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from manyhands.errors import RecipeError

if TYPE_CHECKING:
    from manyhands.diffusion.schedule import Schedule


def epsilon(mu: float, delta: float) -> float:
    """The epsilon of a Gaussian mechanism at this delta, where ``mu`` is the sensitivity over the noise's deviation.

    References:
        Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration and Optimal Denoising,
            Balle, Wang, 2018, arXiv 1805.06530
    """
    if mu <= 0 or _delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while _delta(high, mu) > delta:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(middle, mu) > delta else (low, middle)
    return high


def mu_of(snr: float, norm: float, releases: int = 1) -> float:
    """Sensitivity over deviation where images of at most this norm are released with noise at this SNR, so often.

    Any image may be replaced by any other: they are at most twice the norm apart.
    """
    return 2 * norm * math.sqrt(snr * releases)


def box_norm(pixels: int) -> float:
    """The largest norm of an image whose pixels are in [-1, 1]."""
    return math.sqrt(pixels)


def cut_of_epsilon(schedule: Schedule, target: float, delta: float, norm: float) -> int:
    """The first step of the chain at which one release has at most this epsilon; at its end nothing is released."""
    snr = schedule.snr().tolist()
    last = schedule.steps - 1
    least = epsilon(mu_of(snr[last], norm), delta)
    if least > target:
        raise RecipeError(
            f"epsilon {target:g} is reached by no step of this chain: a release at step {last} still has {least:.3g}"
        )
    low, high = 0, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if epsilon(mu_of(snr[middle], norm), delta) <= target else (middle, high)
    return high


def _delta(eps: float, mu: float) -> float:
    """The least delta of a Gaussian mechanism at this epsilon (Balle, Wang, theorem 8)."""
    first = _log_normal_below(mu / 2 - eps / mu)
    second = eps + _log_normal_below(-mu / 2 - eps / mu)
    return max(math.exp(first) - math.exp(min(second, first)), 0.0)


def _log_normal_below(x: float) -> float:
    """The logarithm of the share of a normal distribution below x, far out too."""
    if x > -30:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    return -x * x / 2 - math.log(-x) - math.log(2 * math.pi) / 2
