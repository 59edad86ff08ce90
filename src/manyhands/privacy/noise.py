"""Noise drawn from a site's secret, so that releasing one record at several noise levels reveals no more than one.

A recipe sets the noise level of a record, and its author may send many recipes. Independent noise in each release
could be averaged away; the same numbers in each would cancel in a difference. So a record has one path of a Brownian
motion W, and noise of variance u is W(u) in every release. All other releases of a path can be computed from the least
noisy one by adding noise, without the record: together they reveal what it reveals alone. The random generators of
PyTorch cannot be used here: on a CPU their seed has 32 bits, and all seeds can be tried.

References:
    Gradual Release of Sensitive Data under Differential Privacy, Koufogiannis, Han, Pappas, 2015, arXiv 1504.00429
    Brownian Noise Reduction: Maximizing Privacy Subject to Accuracy Constraints, Whitehouse et al., 2022,
        arXiv 2206.07234
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np

MIN_VARIANCE, CELL_COUNT, CELLS_PER_OCTAVE = 2.0**-32, 512, 8
"""The path is constructed at ``CELL_COUNT`` variances from the smallest one: 96 to -96 dB."""
MAX_LABEL_DRAWS = 64
"""The most times that a label is redrawn; after the first time it is independent of the true label."""


def uniform(key: bytes, count: int) -> np.ndarray:
    """Draw numbers from the open interval (0, 1) that cannot be predicted without the key."""
    raw = np.frombuffer(hashlib.shake_256(key).digest(8 * count), dtype="<u8")
    return ((raw >> 12) + 0.5) * 2.0**-52


def normal(key: bytes, count: int) -> np.ndarray:
    """Draw standard normal numbers that cannot be predicted without the key (Box and Muller, 1958)."""
    u = uniform(key, 2 * math.ceil(count / 2)).reshape(2, -1)
    radius, angle = np.sqrt(-2 * np.log(u[0])), 2 * np.pi * u[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def path_noise(key: bytes, variance: float, count: int) -> np.ndarray:
    """Compute ``count`` standard normal numbers, W(variance) / sqrt(variance) of the path with this key."""
    drawn = np.zeros(count)
    for node, share in noise_shares(variance).items():
        drawn += share * normal(key + node.encode(), count)
    return drawn


@lru_cache(maxsize=4096)
def noise_shares(variance: float) -> dict[str, float]:
    """Write W(variance) / sqrt(variance) as a weighted sum of independent normal numbers: name to weight.

    They are the numbers of Levy's construction of W at the next lower variance where the path is constructed, and one
    number for the step from there, which only this variance has. So any number of releases reveals no more than W at
    that lower variance: at most 3/8 dB more than the least noisy release.
    """
    if not MIN_VARIANCE <= variance < math.inf:
        return {variance.hex(): 1.0}
    cell = min(math.floor(CELLS_PER_OCTAVE * (math.log2(variance) - math.log2(MIN_VARIANCE))), CELL_COUNT - 1)
    rest = max(variance - _variance(cell), 0.0)
    known = {str(node): share / math.sqrt(variance) for node, share in _levy(cell).items()}
    return known | ({variance.hex(): math.sqrt(rest / variance)} if rest else {})


@lru_cache(maxsize=CELL_COUNT)
def _levy(cell: int) -> dict[int, float]:
    """W at a variance where the path is constructed: intervals are halved, each midpoint has its own number."""
    low, high = 0, CELL_COUNT
    left = {low: math.sqrt(MIN_VARIANCE)}
    right = left | {high: math.sqrt(_variance(high) - MIN_VARIANCE)}
    while high - low > 1:
        middle = (low + high) // 2
        start, at, end = (_variance(edge) for edge in (low, middle, high))
        near, own = (at - start) / (end - start), math.sqrt((at - start) * (end - at) / (end - start))
        ends = {node: (1 - near) * left.get(node, 0.0) + near * right.get(node, 0.0) for node in left | right}
        between = ends | {middle: own}
        low, high, left, right = (middle, high, between, right) if cell >= middle else (low, middle, left, between)
    return left


def _variance(cell: int) -> float:
    return float(MIN_VARIANCE * 2.0 ** (cell / CELLS_PER_OCTAVE))


def randomise_label(key: bytes, label: int, classes: int, epsilon: float) -> int:
    """Apply randomised response: the result is the true label with odds e^epsilon against each other class.

    The label is redrawn from all classes at random times, and a smaller epsilon looks at a later time. So the result at
    a smaller epsilon can be computed from the one at a larger epsilon, without the label.

    Args:
        key: The secret key of this label.
        label: The true label.
        classes: The number of classes.
        epsilon: The epsilon of the result.
    """
    until = math.log((math.exp(epsilon) + classes - 1) / math.expm1(epsilon))
    waits, drawn = uniform(key, 2 * MAX_LABEL_DRAWS).reshape(2, -1)
    times = np.cumsum(-np.log(waits))
    count = int(np.searchsorted(times, until, side="right"))
    return int(drawn[count - 1] * classes) if count else label
