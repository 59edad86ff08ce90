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
    *,
    held: np.ndarray,
    domain: np.ndarray,
    silos: int,
    rng: np.random.Generator,
    lacks: Shares,
    sizes: Shares,
    max_images: int,
    minimum: int = 1,
) -> Parts:
    """Give each silo an equal share of one domain, then remove some classes and the images beyond its size.

    Held-out images stay.

    Args:
        labels: The class number of each image.
        held: Whether each image is held out.
        domain: The number of each image's domain.
        silos: The number of silos.
        rng: The random numbers of the partition.
        lacks: Pairs of a number of classes that a silo lacks, and its weight in the draw.
        sizes: Pairs of a share of the silos, and the share of ``max_images`` that they have.
        max_images: The number of training images of a silo of size 1.
        minimum: The least number of training images of a silo; fewer are an error.
    """
    parts, classes = domains(domain, silos, rng), np.unique(labels)
    numbers, weights = (np.array(column) for column in zip(*lacks, strict=True))
    shares = np.repeat([size for _, size in sizes], counts_of([share for share, _ in sizes], silos))
    for silo, (part, share) in enumerate(zip(parts, rng.permutation(shares), strict=True)):
        absent = rng.choice(classes, int(rng.choice(numbers, p=weights / weights.sum())), replace=False)
        train = rng.permutation(part[~held[part] & ~np.isin(labels[part], absent)])[: round(share * max_images)]
        if len(train) < minimum:
            raise DataError(f"silo {silo} would have {len(train)} images, fewer than the minimum of {minimum}")
        parts[silo] = np.sort(np.concatenate([train, part[held[part]]]))
    return parts


class Lacking(Partition):
    """Each silo has images of one domain, lacks whole classes, and has its own size, as in HuSCF-GAN.

    Held-out images are distributed evenly and of all classes. The partition does not depend on the seed of the run.

    References:
        A Distributed Generative AI Approach for Heterogeneous Multi-Domain Environments under Data Sharing constraints,
            Tawfilis et al., 2025, arXiv 2507.12979
    """

    kind: Literal["lacking"] = Field(default="lacking", description="Selects this kind of partition.")
    each: Int = Field(ge=1, description="The number of training images of a silo whose size is 1.")
    lacks: tuple[tuple[Int, Annotated[Float, Field(gt=0)]], ...] = Field(
        default=((0, 1.0),),
        min_length=1,
        description=(
            "Pairs of a number of classes that a silo lacks and its weight in the draw: [[0, 0.3], [2, 0.7]] lets "
            "about 70 % of the silos lack two classes."
        ),
    )
    sizes: tuple[tuple[Annotated[Float, Field(gt=0)], Annotated[Float, Field(gt=0, le=1)]], ...] = Field(
        default=((1.0, 1.0),),
        min_length=1,
        description=(
            "Pairs of a share of the silos and their size as a share of `each`: [[0.3, 0.67], [0.7, 1]] gives 30 % of "
            "the silos 67 % of the images."
        ),
    )

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """Distribute the images; see ``lacking``."""
        labels = labels_of(images)
        if (most := max(number for number, _ in self.lacks)) >= len(np.unique(labels)):
            raise DataError(f"a silo would lack {most} of {len(np.unique(labels))} classes")
        held = np.zeros(len(images), bool) if images.held is None else images.held.numpy()
        domain, own = domain_of(images), numpy_rng(0, "lacking")
        return lacking(
            labels,
            held=held,
            domain=domain,
            silos=self.silos,
            rng=own,
            lacks=self.lacks,
            sizes=self.sizes,
            max_images=self.each,
            minimum=self.minimum,
        )

    def check_data(self, domains: Sequence[str], *, labelled: bool) -> None:
        """Take images of one source and of several."""
