"""What Gaussian noise hides of an image, as local differential privacy has it: numbers in, numbers out."""

from __future__ import annotations

import math


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


def decibel(snr: float) -> float:
    """A ratio of powers in decibels."""
    return 10 * math.log10(snr) if snr > 0 else -math.inf


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
