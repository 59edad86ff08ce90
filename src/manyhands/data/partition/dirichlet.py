"""Skewed class mixes, from a Dirichlet distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from manyhands.data.images import Images
from manyhands.data.partition.base import (
    Partition,
    Parts,
    check_labelled,
    cut_by_shares,
    labels_of,
    top_up,
)
from manyhands.spec import Float


def dirichlet(labels: np.ndarray, silos: int, rng: np.random.Generator, alpha: float, minimum: int = 1) -> Parts:
    """Divide each class by shares from a symmetric Dirichlet distribution; a small alpha makes skewed silos.

    References:
        Measuring the Effects of Non-Identical Data Distribution, Hsu, Qi, Brown, 2019, arXiv 1909.06335
    """
    parts: list[list[np.ndarray]] = [[] for _ in range(silos)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        for part, chunk in zip(parts, cut_by_shares(members, rng.dirichlet([alpha] * silos)), strict=True):
            part.append(chunk)
    return top_up([np.concatenate(part) for part in parts], rng, minimum)


class Dirichlet(Partition):
    """Skewed class mixes: each class is divided by shares from a Dirichlet distribution."""

    kind: Literal["dirichlet"] = Field(default="dirichlet", description="Selects this kind of partition.")
    alpha: Float = Field(
        gt=0, description="The concentration of the Dirichlet distribution: 0.1 is a strong skew, 5 a weak one."
    )

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """Distribute the images; see ``dirichlet``."""
        return dirichlet(labels_of(images), self.silos, rng, self.alpha, self.minimum)

    def check_data(self, domains: Sequence[str], *, labelled: bool) -> None:
        """Check that there are labels, and no domains."""
        check_labelled(self.kind, labelled=labelled)
        super().check_data(domains, labelled=labelled)
