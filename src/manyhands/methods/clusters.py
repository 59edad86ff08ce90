"""Which silos have images of one kind, found from vectors that tell of each, and how much each counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_CLUSTERS = 10
"""The most clusters that are looked for."""
CLEAR = 0.25
"""The least silhouette that is taken for clusters; below, all silos are one."""
TINY = 1e-9


class Place(NamedTuple):
    """Where a silo is: its cluster, its distance from the others of that, and what share it has in their mean."""

    cluster: int
    distance: float
    weight: float
    at: tuple[float, float] | None = None


def plain(images: Mapping[str, int]) -> dict[str, Place]:
    """All in one cluster, by their images."""
    return {silo: Place(0, 0.0, share) for silo, share in weights(images, dict.fromkeys(images, 0.0), 0).items()}


def grouped(
    features: Mapping[str, Tensor],
    images: Mapping[str, int],
    count: int | Literal["auto"],
    alpha: float,
    before: Mapping[str, int],
) -> dict[str, Place]:
    """Silos in clusters, and weighed within them. A cluster keeps the number that most of its silos had ``before``."""
    alike: dict[int, list[str]] = {}
    for silo, label in found(features, count).items():
        alike.setdefault(label, []).append(silo)
    on_plane, told = places(features), dict[str, Place]()
    for number, mine in numbered(list(alike.values()), before):
        near = distances(features, mine)
        shares = weights({silo: images[silo] for silo in mine}, near, alpha)
        told |= {silo: Place(number, near[silo], shares[silo], on_plane[silo]) for silo in mine}
    return told


def numbered(groups: Sequence[Sequence[str]], before: Mapping[str, int]) -> Iterator[tuple[int, Sequence[str]]]:
    """Groups with numbers of their own, the largest first: an old one, or one that nobody has who is in no group."""
    present = {silo for group in groups for silo in group}
    taken = {number for silo, number in before.items() if silo not in present}
    free = (number for number in range(len(before) + len(groups)) if number not in taken)
    used: set[int] = set()
    for group in sorted(groups, key=len, reverse=True):
        had = Counter(before[silo] for silo in group if silo in before)
        kept = [number for number, _ in had.most_common() if number not in used]
        number = kept[0] if kept else next(number for number in free if number not in used)
        used.add(number)
        yield number, group


def found(features: Mapping[str, Tensor], count: int | Literal["auto"], seed: int = 42) -> dict[str, int]:
    """The number of the cluster of each silo, counted from 0 in the order of the first silo of each.

    A silo is told by the mean of its batch. So many clusters by k-means; ``auto`` tries each number and takes the one
    with the largest silhouette, if that is clear: two silos alone are one cluster.
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
        tried = [labels(k) for k in range(2, min(MAX_CLUSTERS, distinct - 1) + 1)]
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
    least = min(apart.values(), default=0.0)  # taken off all, so that however large alpha is, somebody counts
    each = {silo: images[silo] * float(np.exp(-alpha * (distance - least))) for silo, distance in apart.items()}
    total = sum(each.values())
    return {silo: weight / total for silo, weight in each.items()}


def _points(features: Mapping[str, Tensor]) -> np.ndarray:
    """The mean of the batch of each silo, in the order of their names."""
    return np.stack([features[silo].mean(0).flatten().double().numpy() for silo in sorted(features)])
