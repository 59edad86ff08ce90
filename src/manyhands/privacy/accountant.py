"""Epsilon of images that are released with Gaussian noise, in local differential privacy; pure functions."""

from __future__ import annotations

import math

import torch


def epsilon(mu: float, delta: float) -> float:
    """Compute the epsilon of a Gaussian mechanism.

    Args:
        mu: The sensitivity divided by the standard deviation of the noise.
        delta: The delta of the guarantee.

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
    """Compute ``mu`` of images that are released with noise.

    Any image may be replaced by any other, so the sensitivity is twice the norm.

    Args:
        snr: The signal-to-noise ratio of one release, as a ratio of powers.
        norm: The largest norm of an image.
        releases: How often each image is released, with independent noise.
    """
    return 2 * norm * math.sqrt(snr * releases)


def decibel(snr: float) -> float:
    """Convert a ratio of powers to decibels."""
    return 10 * math.log10(snr) if snr > 0 else -math.inf


def _delta(eps: float, mu: float) -> float:
    """The smallest delta of a Gaussian mechanism at this epsilon (Balle, Wang, theorem 8)."""
    places = torch.tensor([mu / 2 - eps / mu, -mu / 2 - eps / mu], dtype=torch.float64)
    first, second = torch.special.log_ndtr(places).tolist()
    return max(math.exp(first) - math.exp(min(eps + second, first)), 0.0)
