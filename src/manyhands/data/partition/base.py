"""The base of all partitions, and functions that several of them need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from manyhands.data.images import Images
from manyhands.errors import DataError
from manyhands.registry import PARTITIONS, OneOf
from manyhands.spec import Int, Spec

Parts = list[np.ndarray]
NEED_EACH_OTHER = "partition 'domains' and [data.domains] need each other; only one of them is there"


class Partition(Spec, ABC):
    """How many silos there are, and how images are distributed to them."""

    silos: Int = Field(default=5, ge=1, le=100_000, description="The number of silos.")
    minimum: Int = Field(default=1, ge=1, description="The least number of images that a silo gets.")

    @abstractmethod
    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """Distribute the images.

        Args:
            images: The images of all silos together.
            rng: The random numbers of the partition.

        Returns:
            The image numbers of each silo, one array each.
        """

    def names(self, domains: Sequence[str] = ()) -> list[str]:
        """Return the names of the silos, in the order of their parts.

        A silo whose images are of one domain has its name: ``mayo``, or ``mayo-0`` and ``mayo-1`` where a domain has
        several silos. Other silos are called ``silo-0``, ``silo-1``. All numbers have the same number of digits.

        Args:
            domains: The names of the domains; empty where silos do not belong to domains.
        """
        if not domains:
            return _numbered("silo", self.silos)
        count = self.silos // len(domains)
        return list(domains) if count == 1 else [name for domain in domains for name in _numbered(domain, count)]

    def check_data(self, domains: Sequence[str], *, labelled: bool) -> None:
        """Raise ``ValueError`` where images of this kind cannot be distributed like this.

        Args:
            domains: The names of the domains; empty for images of a single source.
            labelled: False where the recipe says that there are no labels.
        """
        if domains:
            raise ValueError(NEED_EACH_OTHER)


AnyPartition = Annotated[Partition, OneOf(PARTITIONS)]


def check_labelled(kind: str, *, labelled: bool) -> None:
    """Raise ``ValueError`` where a kind of partition needs labels and there are none."""
    if not labelled:
        raise ValueError(f"partition {kind!r} distributes images by label, but data.classes is 0")


def top_up(parts: Parts, rng: np.random.Generator, minimum: int) -> Parts:
    """Give each silo with fewer than ``minimum`` images random ones of the largest silo."""
    total = sum(map(len, parts))
    if total < minimum * len(parts):
        raise DataError(f"{total} images are too few to give {len(parts)} silos {minimum} each")
    for i in range(len(parts)):
        while (short := minimum - len(parts[i])) > 0:
            largest = max(range(len(parts)), key=lambda k: len(parts[k]))
            moved, kept = np.split(rng.permutation(parts[largest]), [min(short, len(parts[largest]) - minimum)])
            parts[i], parts[largest] = np.concatenate([parts[i], moved]), kept
    return [np.sort(part) for part in parts]


def cut_by_shares(numbers: np.ndarray, shares: np.ndarray) -> Parts:
    """Cut an array into parts in proportion to shares that sum to 1."""
    return np.split(numbers, np.rint(np.cumsum(shares)[:-1] * len(numbers)).astype(int))


def counts_of(shares: Sequence[float], total: int) -> list[int]:
    """Return whole numbers in proportion to the shares, with this total."""
    ends = np.rint(np.cumsum(shares) / sum(shares) * total).astype(int)
    return [int(count) for count in np.diff(ends, prepend=0)]


def rows_of(images: Images, table: np.ndarray, path: Path, unit: str) -> np.ndarray:
    """Select the rows of these images from a table with one row for each image of the source.

    Args:
        images: The images.
        table: One row for each image of their source.
        path: The file of the table, for the message of an error.
        unit: What a row is called in that message.
    """
    rows = np.arange(len(images)) if images.rows is None else images.rows.numpy()
    if (images.rows is None and len(table) != len(images)) or rows.max() >= len(table):
        raise DataError(f"{path}: has {len(table):,} {unit} for {rows.max() + 1:,} images")
    return table[rows]


def labels_of(images: Images) -> np.ndarray:
    """Return the labels, or raise an error where there are none."""
    if images.labels is None:
        raise DataError("this partition needs labels, and these images have none; use iid, quantity or by_id")
    return images.labels.numpy()


def domain_of(images: Images) -> np.ndarray:
    """Return the number of each image's domain, 0 for a single domain. A domain without images is an error."""
    domain = np.zeros(len(images), dtype=int) if images.domain is None else images.domain.numpy()
    if empty := [name for number, name in enumerate(images.domains) if number not in domain]:
        raise DataError(f"domain {empty[0]!r} has no images here; a larger data.limit may help")
    return domain


def _numbered(name: str, count: int) -> list[str]:
    width = len(str(count - 1))
    return [f"{name}-{i:0{width}d}" for i in range(count)]


def class_counts(silos: list[Images]) -> np.ndarray:
    """Count the images of each class at each silo: (silos, classes), with one column for images without labels."""
    return np.array(
        [
            [len(images)] if images.labels is None else np.bincount(images.labels.cpu(), minlength=len(images.classes))
            for images in silos
        ]
    )
