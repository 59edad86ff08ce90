"""Clusters of silos whose images are alike, formed from a feature of each silo, and the weight of each silo in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_CLUSTERS = 10
"""The most clusters that ``auto`` tries."""
MIN_SILHOUETTE = 0.25
"""With ``auto``, a division of a lower silhouette is rejected: then all silos are one cluster."""
TINY = 1e-9


class Assignment(NamedTuple):
    """The cluster of a silo.

    Args:
        cluster: The number of the cluster.
        distance: The distance of the silo's features from those of the rest of the cluster.
        weight: The silo's share in the mean of the cluster, from 0 to 1.
        position: The silo's point on a plane for the report, or None.
    """

    cluster: int
    distance: float
    weight: float
    position: tuple[float, float] | None = None


def one_cluster(images: Mapping[str, int]) -> dict[str, Assignment]:
    """Put all silos in one cluster, weighed by their number of images."""
    shares = mean_shares(images, dict.fromkeys(images, 0.0), 0)
    return {silo: Assignment(0, 0.0, share) for silo, share in shares.items()}


def check_count(count: int | Literal["auto"], silos: Sequence[str]) -> None:
    """Raise ``ValueError`` where there are fewer silos than clusters."""
    if count != "auto" and count > len(silos):
        raise ValueError(f"method.clusters is {count}, partition.silos is only {len(silos)}")


def assign_clusters(
    features: Mapping[str, Tensor],
    images: Mapping[str, int],
    count: int | Literal["auto"],
    alpha: float,
    before: Mapping[str, int],
) -> dict[str, Assignment]:
    """Divide silos into clusters, and weigh them within each.

    Args:
        features: The features of each silo, of shape (B, C, H, W).
        images: The number of images of each silo.
        count: How many clusters to form, or ``auto``.
        alpha: How strongly a silo's distance from its cluster lowers its weight.
        before: The cluster that each silo had; a new cluster keeps the number that most of its silos had.
    """
    groups: dict[int, list[str]] = {}
    for silo, label in cluster_labels(features, count).items():
        groups.setdefault(label, []).append(silo)
    positions, assignments = plane_positions(features), dict[str, Assignment]()
    for number, silos in number_clusters(list(groups.values()), before):
        apart = distances(features, silos)
        shares = mean_shares({silo: images[silo] for silo in silos}, apart, alpha)
        assignments |= {silo: Assignment(number, apart[silo], shares[silo], positions[silo]) for silo in silos}
    return assignments


def number_clusters(groups: Sequence[Sequence[str]], before: Mapping[str, int]) -> Iterator[tuple[int, Sequence[str]]]:
    """Give each group a number, the largest group first: one that its silos had before, or a free one.

    A number is not free while a silo that is in none of the groups has it.
    """
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


def cluster_labels(features: Mapping[str, Tensor], count: int | Literal["auto"], seed: int = 42) -> dict[str, int]:
    """Return the cluster of each silo by k-means, counted from 0 in the order of the silos' names.

    Args:
        features: The features of each silo, of shape (B, ...); a silo is represented by its mean over the batch.
        count: How many clusters to form. ``auto`` tries each number from 2 on, and takes the one with the largest
            silhouette if that is at least ``MIN_SILHOUETTE``; two silos alone are one cluster.
        seed: The seed of k-means.
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
        scores = [silhouette_score(points, division) for division in tried]
        clear = scores and max(scores) >= MIN_SILHOUETTE
        chosen = tried[int(np.argmax(scores))] if clear else np.zeros(len(silos), int)
    order: dict[int, int] = {}
    return {silo: order.setdefault(int(label), len(order)) for silo, label in zip(silos, chosen, strict=True)}


def plane_positions(features: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Return each silo's first two principal components: the plane on which silos differ most."""
    if len(features) < 2:
        return dict.fromkeys(features, (0.0, 0.0))
    points = _points(features)
    left, singular, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    along = left[:, :2] * singular[:2] * np.sign(left[np.abs(left).argmax(0), range(left.shape[1])])[:2]
    return {silo: (float(x), float(y)) for silo, (x, y) in zip(sorted(features), along, strict=True)}


def distances(features: Mapping[str, Tensor], silos: Sequence[str]) -> dict[str, float]:
    """Return each silo's distance from the others: KL(Q || P), the mean over channels.

    P is the softmax over positions of the silo's features, averaged over the batch, channel by channel; Q is the mean
    of the others' P. A silo alone has distance 0.

    Args:
        features: The features of each silo, of shape (B, C, H, W).
        silos: The silos that are compared.
    """
    maps = {silo: features[silo].mean(0).flatten(1).double().softmax(1) for silo in silos}
    if len(maps) < 2:
        return dict.fromkeys(maps, 0.0)
    total = torch.stack(list(maps.values())).sum(0)
    apart = {}
    for silo, p in maps.items():
        q = (total - p) / (len(maps) - 1)
        apart[silo] = float((q * ((q + TINY).log() - (p + TINY).log())).sum(1).mean())
    return apart


def mean_shares(images: Mapping[str, int], apart: Mapping[str, float], alpha: float) -> dict[str, float]:
    """Return n exp(-alpha d) of each silo as a share of the total, with n its images and d its distance."""
    least = min(apart.values(), default=0.0)  # subtracted from all, so that a large alpha leaves somebody a weight
    weights = {silo: images[silo] * float(np.exp(-alpha * (distance - least))) for silo, distance in apart.items()}
    total = sum(weights.values())
    return {silo: weight / total for silo, weight in weights.items()}


def _points(features: Mapping[str, Tensor]) -> np.ndarray:
    """Return the mean over each silo's batch, in the order of the silos' names."""
    return np.stack([features[silo].mean(0).flatten().double().numpy() for silo in sorted(features)])
