"""Unequal sizes, equal mix."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from manyhands.data.images import Images
from manyhands.data.partition.base import (
    Partition,
    Parts,
    cut_by_shares,
    top_up,
)
from manyhands.spec import Float


def quantity(labels: np.ndarray, silos: int, rng: np.random.Generator, alpha: float, minimum: int = 1) -> Parts:
    """The same mix everywhere, but silo sizes from a Dirichlet distribution; small alpha, unequal silos."""
    return top_up(cut_by_shares(rng.permutation(len(labels)), rng.dirichlet([alpha] * silos)), rng, minimum)


class Quantity(Partition):
    """Unequal sizes, equal mix."""

    kind: Literal["quantity"] = "quantity"
    alpha: Float = Field(gt=0)

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """See ``quantity``."""
        return quantity(np.zeros(len(images)), self.silos, rng, self.alpha, self.minimum)
