"""How images are dealt to silos: what every kind of partition has, and what several of them need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from manyhands.data.images import Images
from manyhands.errors import DataError
from manyhands.spec import Int, Spec

Parts = list[np.ndarray]


class Partition(Spec, ABC):
    """How many silos there are, and how images are dealt to them."""

    silos: Int = Field(default=5, ge=1, le=100_000)
    minimum: Int = Field(default=1, ge=1)

    @abstractmethod
    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """The image numbers of each silo."""

    def names(self, domains: Sequence[str] = ()) -> list[str]:
        """What the silos are called, in the order of their parts.

        Of one domain each, they have its name: ``mayo``, or where it has several ``mayo-0``, ``mayo-1``; others are
        ``silo-0``, ``silo-1``. All numbers are equally long.
        """
        if not domains:
            return _numbered("silo", self.silos)
        each = self.silos // len(domains)
        return list(domains) if each == 1 else [name for domain in domains for name in _numbered(domain, each)]


def top_up(parts: Parts, rng: np.random.Generator, minimum: int) -> Parts:
    """Give silos with fewer than ``minimum`` images random ones of the largest silo."""
    total = sum(map(len, parts))
    if total < minimum * len(parts):
        raise DataError(f"{total} images cannot give {len(parts)} silos {minimum} each")
    for i in range(len(parts)):
        while (short := minimum - len(parts[i])) > 0:
            largest = max(range(len(parts)), key=lambda k: len(parts[k]))
            given, kept = np.split(rng.permutation(parts[largest]), [min(short, len(parts[largest]) - minimum)])
            parts[i], parts[largest] = np.concatenate([parts[i], given]), kept
    return [np.sort(part) for part in parts]


def cut_by_shares(numbers: np.ndarray, shares: np.ndarray) -> Parts:
    """Cut an array in proportion to shares that sum to 1."""
    return np.split(numbers, np.rint(np.cumsum(shares)[:-1] * len(numbers)).astype(int))


def counts_of(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to shares, with this total."""
    ends = np.rint(np.cumsum(shares) / sum(shares) * total).astype(int)
    return [int(count) for count in np.diff(ends, prepend=0)]


def rows_of(images: Images, told: np.ndarray, path: Path, what: str) -> np.ndarray:
    """What a file with a row for each image of the source says of these images."""
    rows = np.arange(len(images)) if images.rows is None else images.rows.numpy()
    if (images.rows is None and len(told) != len(images)) or rows.max() >= len(told):
        raise DataError(f"{path}: has {len(told):,} {what} for {rows.max() + 1:,} images")
    return told[rows]


def labels_of(images: Images) -> np.ndarray:
    """The labels, which this kind of partition needs."""
    if images.labels is None:
        raise DataError("this partition deals by label, and these images have none; use iid, quantity or by_id")
    return images.labels.numpy()


def domain_of(images: Images) -> np.ndarray:
    """The number of each image's domain: 0 where there is one only. No domain may be without images."""
    domain = np.zeros(len(images), dtype=int) if images.domain is None else images.domain.numpy()
    if empty := [name for number, name in enumerate(images.domains) if number not in domain]:
        raise DataError(f"of domain {empty[0]!r} there are no images: a larger data.limit may help")
    return domain


def _numbered(name: str, count: int) -> list[str]:
    width = len(str(count - 1))
    return [f"{name}-{i:0{width}d}" for i in range(count)]


def class_counts(silos: list[Images]) -> np.ndarray:
    """How many images of each class each silo has: silos x classes; one column where there are no labels."""
    return np.array(
        [
            [len(images)] if images.labels is None else np.bincount(images.labels.cpu(), minlength=len(images.classes))
            for images in silos
        ]
    )
