"""Precision, recall, density and coverage of sets that are too large for a table of all distances.

The package prdc keeps three such tables in memory, which at 10,000 images take 4 GB.
"""

from __future__ import annotations

import numpy as np

BLOCK = 512
"""The number of rows of a table of distances that are in memory at once."""


def prdc_in_blocks(real: np.ndarray, samples: np.ndarray, nearest: int) -> dict[str, float]:
    """Compute the same figures as ``prdc.compute_prdc``, block by block.

    Args:
        real: The features of real images, (N, D).
        samples: The features of samples, (M, D).
        nearest: How many neighbours an image's neighbourhood reaches to.

    References:
        Reliable Fidelity and Diversity Metrics for Generative Models, Naeem et al., 2020, arXiv 2002.09797
    """
    from sklearn.metrics import pairwise_distances

    reach, reach_of_samples = _reach(real, nearest), _reach(samples, nearest)
    around, recalled, covered = np.zeros(len(samples), np.int64), [], []
    for start in range(0, len(real), BLOCK):
        distances = pairwise_distances(real[start : start + BLOCK], samples)
        own = reach[start : start + BLOCK]
        around += (distances < own[:, None]).sum(0)
        recalled.append((distances < reach_of_samples).any(1))
        covered.append(distances.min(1) < own)
    return {
        "precision": float((around > 0).mean()),
        "recall": float(np.concatenate(recalled).mean()),
        "density": float(around.mean() / nearest),
        "coverage": float(np.concatenate(covered).mean()),
    }


def _reach(features: np.ndarray, nearest: int) -> np.ndarray:
    """The distance of each row to its neighbour number ``nearest``, (N,)."""
    from sklearn.metrics import pairwise_distances

    reach = []
    for start in range(0, len(features), BLOCK):
        distances = pairwise_distances(features[start : start + BLOCK], features)
        numbers = np.arange(len(distances))
        distances[numbers, start + numbers] = 0
        reach.append(np.partition(distances, nearest, axis=1)[:, nearest])
    return np.concatenate(reach)
