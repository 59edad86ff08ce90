"""Silos that lack whole classes, as in HuSCF-GAN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from manyhands.data.images import Images
from manyhands.data.partition.base import (
    Partition,
    Parts,
    counts_of,
    domain_of,
    labels_of,
)
from manyhands.data.partition.domains import domains
from manyhands.errors import DataError
from manyhands.seed import numpy_rng
from manyhands.spec import Float, Int

Shares = Sequence[tuple[float, float]]


def lacking(
    labels: np.ndarray,
    held: np.ndarray,
    domain: np.ndarray,
    silos: int,
    rng: np.random.Generator,
    lacks: Shares,
    sizes: Shares,
    each: int,
    minimum: int = 1,
) -> Parts:
    """Equal shares of one domain each; of them each silo loses some classes, and what is beyond a share of ``each``.

    Images that are ``held`` out stay. ``lacks`` and ``sizes`` are pairs: how many classes a silo lacks with which
    weight, and the share of silos that have which share of ``each``.
    """
    parts, classes = domains(domain, silos, rng), np.unique(labels)
    numbers, weights = (np.array(each) for each in zip(*lacks, strict=True))
    shares = np.repeat([size for _, size in sizes], counts_of([share for share, _ in sizes], silos))
    for silo, (part, share) in enumerate(zip(parts, rng.permutation(shares), strict=True)):
        gone = rng.choice(classes, int(rng.choice(numbers, p=weights / weights.sum())), replace=False)
        train = rng.permutation(part[~held[part] & ~np.isin(labels[part], gone)])[: round(share * each)]
        if len(train) < minimum:
            raise DataError(f"silo {silo} would have {len(train)} images, fewer than the minimum of {minimum}")
        parts[silo] = np.sort(np.concatenate([train, part[held[part]]]))
    return parts


class Lacking(Partition):
    """Silos of one domain each that lack whole classes, and have but a part of ``each`` images, as HuSCF-GAN has them.

    A silo lacks so many classes with such a weight: ``lacks = [[0, 0.3], [2, 0.7]]``. Such a share of the silos has
    such a share of ``each``: ``sizes = [[0.3, 0.67], [0.7, 1]]``. What is held out is dealt evenly, of all classes. Who
    holds what does not depend on the run's seed.

    References:
        A Distributed Generative AI Approach for Heterogeneous Multi-Domain Environments under Data Sharing constraints,
            Tawfilis et al., 2025, arXiv 2507.12979
    """

    kind: Literal["lacking"] = "lacking"
    each: Int = Field(ge=1)
    lacks: tuple[tuple[Int, Annotated[Float, Field(gt=0)]], ...] = Field(default=((0, 1.0),), min_length=1)
    sizes: tuple[tuple[Annotated[Float, Field(gt=0)], Annotated[Float, Field(gt=0, le=1)]], ...] = Field(
        default=((1.0, 1.0),), min_length=1
    )

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """See ``lacking``."""
        labels, nothing = labels_of(images), np.zeros(len(images), dtype=int)
        if (most := max(number for number, _ in self.lacks)) >= len(np.unique(labels)):
            raise DataError(f"a silo would lack {most} of {len(np.unique(labels))} classes")
        held = nothing.astype(bool) if images.held is None else images.held.numpy()
        domain, own = domain_of(images), numpy_rng(0, "lacking")
        return lacking(labels, held, domain, self.silos, own, self.lacks, self.sizes, self.each, self.minimum)
