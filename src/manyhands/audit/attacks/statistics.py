"""Intervals of figures, and how well a score separates two groups: pure functions of one or two rows of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

RESAMPLES = 200
COVERAGE = 0.95
Interval = dict[str, float]
"""``value``, and the ``low`` and ``high`` ends of its 95 % interval."""


def bootstrap(
    statistic: Callable[..., float], *samples: Tensor, rng: torch.Generator, resamples: int = RESAMPLES
) -> Interval:
    """A statistic of one or several independent samples, with an interval from the percentiles of its resamples.

    References:
        Bootstrap Methods: Another Look at the Jackknife, Efron, 1979, The Annals of Statistics 7
    """
    resampled = [statistic(*(sample[_resample(len(sample), rng)] for sample in samples)) for _ in range(resamples)]
    tail = (1 - COVERAGE) / 2
    percentiles = torch.tensor(resampled, dtype=torch.float64).quantile(
        torch.tensor([tail, 1 - tail], dtype=torch.float64)
    )
    return {"value": statistic(*samples), "low": float(percentiles[0]), "high": float(percentiles[1])}


def mean(values: Tensor) -> float:
    """The mean."""
    return float(values.double().mean())


def proportion(hits: Tensor) -> Interval:
    """The share of hits, with an interval that is also useful where none or all are hits.

    References:
        Probable Inference, the Law of Succession, and Statistical Inference, Wilson, 1927,
            Journal of the American Statistical Association 22
    """
    z, n, p = 1.959964, len(hits), mean(hits)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"value": p, "low": min(max(middle - half, 0.0), p), "high": max(min(middle + half, 1.0), p)}


def auc(positives: Tensor, negatives: Tensor) -> float:
    """The chance that a positive scores above a negative; a tie counts half."""
    ordered = negatives.sort().values
    below = torch.searchsorted(ordered, positives, side="left").double()
    not_above = torch.searchsorted(ordered, positives, side="right").double()
    # by hand: scikit-learn's gives the same at 7 to 65 times the time, and a bootstrap needs 200 of them
    return float((below + not_above).mean() / (2 * len(negatives)))


def true_positives(positives: Tensor, negatives: Tensor, false_positives: float = 0.01) -> float:
    """The share of positives above the threshold that at most this share of negatives exceeds."""
    threshold = negatives.sort(descending=True).values[int(false_positives * len(negatives))]
    return mean(positives > threshold)


def _resample(count: int, rng: torch.Generator) -> Tensor:
    return torch.randint(count, (count,), generator=rng, device=rng.device)
