"""Which silos have images of one kind, found from what the discriminator's middle makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

MOST = 10
"""The most clusters that are looked for."""
CLEAR = 0.25
"""The least silhouette that is taken for clusters; below, all silos are one."""
TINY = 1e-9


def found(features: Mapping[str, Tensor], count: int | Literal["auto"], seed: int = 42) -> dict[str, int]:
    """The number of the cluster of each silo, counted from 0 in the order of the first silo of each.

    A silo is told by the mean of its batch. So many clusters by k-means; ``auto`` tries each number and takes the one
    with the largest silhouette, if that is clear.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    silos, points = sorted(features), _points(features)

    def labels(k: int) -> np.ndarray:
        return np.asarray(KMeans(k, n_init=10, random_state=seed).fit_predict(points))

    distinct = len(np.unique(points.round(12), axis=0))
    if count != "auto":
        chosen = labels(min(count, distinct)) if min(count, distinct) > 1 else np.zeros(len(silos), int)
    else:
        tried = [labels(k) for k in range(2, min(MOST, distinct - 1) + 1)]
        scores = [silhouette_score(points, each) for each in tried]
        chosen = tried[int(np.argmax(scores))] if scores and max(scores) >= CLEAR else np.zeros(len(silos), int)
    order: dict[int, int] = {}
    return {silo: order.setdefault(int(label), len(order)) for silo, label in zip(silos, chosen, strict=True)}


def places(features: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Where each silo lies on the plane that shows most of how they differ: their first two principal components."""
    if len(features) < 2:
        return dict.fromkeys(features, (0.0, 0.0))
    points = _points(features)
    left, singular, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    along = left[:, :2] * singular[:2] * np.sign(left[np.abs(left).argmax(0), range(left.shape[1])])[:2]
    return {silo: (float(x), float(y)) for silo, (x, y) in zip(sorted(features), along, strict=True)}


def _points(features: Mapping[str, Tensor]) -> np.ndarray:
    """The mean of the batch of each silo, in the order of their names."""
    return np.stack([features[silo].mean(0).flatten().double().numpy() for silo in sorted(features)])


def distances(features: Mapping[str, Tensor], among: Sequence[str]) -> dict[str, float]:
    """How far each silo's places of activity are from those of the others: KL(Q || P), the mean over channels.

    P is the softmax over positions of the mean over the batch, channel by channel; Q the mean of the others' P. One
    that is alone is at no distance.
    """
    places = {silo: features[silo].mean(0).flatten(1).double().softmax(1) for silo in among}
    if len(places) < 2:
        return dict.fromkeys(places, 0.0)
    total = torch.stack(list(places.values())).sum(0)
    found = {}
    for silo, p in places.items():
        q = (total - p) / (len(places) - 1)
        found[silo] = float((q * ((q + TINY).log() - (p + TINY).log())).sum(1).mean())
    return found


def weights(images: Mapping[str, int], apart: Mapping[str, float], alpha: float) -> dict[str, float]:
    """N exp(-alpha d) of each, as a share of all."""
    each = {silo: images[silo] * float(np.exp(-alpha * distance)) for silo, distance in apart.items()}
    total = sum(each.values())
    return {silo: weight / total for silo, weight in each.items()}
