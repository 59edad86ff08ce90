"""Noise that hides something, drawn from a secret; what is drawn again of one record, louder or softer, tells no more.

A recipe says how loud the noise of a record is, and whoever writes recipes may ask for many. Fresh noise for each
would be averaged away, the same numbers for all would cancel in a difference. So a record has one path of a Brownian
motion W: noise of variance u is W(u), wherever it is asked for. Of several, the least noisy one makes all the others
by adding noise to it, without the record: together they tell what it tells alone. Generators of random numbers will not
do here: PyTorch's has 32 bits of seed on a CPU, which can be tried one by one.

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
"""The path is built at so many variances from the least one, so many to an octave: 96 to -96 dB."""
MAX_LABEL_DRAWS = 64
"""So often at most is a label drawn anew; after the first time it has nothing of the true one."""


def uniform(key: bytes, count: int) -> np.ndarray:
    """Numbers between 0 and 1, both left out, that nobody can tell who has not the key."""
    raw = np.frombuffer(hashlib.shake_256(key).digest(8 * count), dtype="<u8")
    return ((raw >> 12) + 0.5) * 2.0**-52


def normal(key: bytes, count: int) -> np.ndarray:
    """Normal numbers by the same means (Box and Muller, 1958)."""
    u = uniform(key, 2 * math.ceil(count / 2)).reshape(2, -1)
    radius, angle = np.sqrt(-2 * np.log(u[0])), 2 * np.pi * u[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def path_noise(key: bytes, variance: float, count: int) -> np.ndarray:
    """W(variance) / sqrt(variance) of the path with this key: each number is normal, of variance 1."""
    drawn = np.zeros(count)
    for node, share in noise_shares(variance).items():
        drawn += share * normal(key + node.encode(), count)
    return drawn


@lru_cache(maxsize=4096)
def noise_shares(variance: float) -> dict[str, float]:
    """What W(variance) / sqrt(variance) is made of: a share of each of a few independent normal numbers, by name.

    They are those of Levy's construction down to the next lower variance at which the path is built, and one for the
    way from there, which only this variance has. So what any number of draws tell is bounded by the next lower one
    that is built: 3/8 dB above the least noisy of them at most.
    """
    if not MIN_VARIANCE <= variance < math.inf:
        return {variance.hex(): 1.0}
    built = min(math.floor(CELLS_PER_OCTAVE * (math.log2(variance) - math.log2(MIN_VARIANCE))), CELL_COUNT - 1)
    rest = max(variance - _variance(built), 0.0)
    known = {str(node): share / math.sqrt(variance) for node, share in _levy(built).items()}
    return known | ({variance.hex(): math.sqrt(rest / variance)} if rest else {})


@lru_cache(maxsize=CELL_COUNT)
def _levy(place: int) -> dict[int, float]:
    """W at one of the variances where it is built: intervals are halved, each middle has a number of its own."""
    low, high = 0, CELL_COUNT
    left = {low: math.sqrt(MIN_VARIANCE)}
    right = left | {high: math.sqrt(_variance(high) - MIN_VARIANCE)}
    while high - low > 1:
        middle = (low + high) // 2
        start, at, end = (_variance(each) for each in (low, middle, high))
        near, own = (at - start) / (end - start), math.sqrt((at - start) * (end - at) / (end - start))
        ends = {node: (1 - near) * left.get(node, 0.0) + near * right.get(node, 0.0) for node in left | right}
        between = ends | {middle: own}
        low, high, left, right = (middle, high, between, right) if place >= middle else (low, middle, left, between)
    return left


def _variance(place: int) -> float:
    return float(MIN_VARIANCE * 2.0 ** (place / CELLS_PER_OCTAVE))


def randomise_label(key: bytes, label: int, classes: int, epsilon: float) -> int:
    """The label, true with the odds e^epsilon against each of the others (randomised response).

    As time goes by, the label is drawn anew among all classes now and then; the smaller epsilon, the later one looks.
    What is told at one epsilon makes what is told at a smaller one, without the label.
    """
    until = math.log((math.exp(epsilon) + classes - 1) / math.expm1(epsilon))
    waits, drawn = uniform(key, 2 * MAX_LABEL_DRAWS).reshape(2, -1)
    times = np.cumsum(-np.log(waits))
    count = int(np.searchsorted(times, until, side="right"))
    return int(drawn[count - 1] * classes) if count else label
