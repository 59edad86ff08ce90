"""Silos of unequal size with the same class mix."""

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
    """Draw the silo sizes from a Dirichlet distribution and keep the class mix; a small alpha makes sizes unequal."""
    return top_up(cut_by_shares(rng.permutation(len(labels)), rng.dirichlet([alpha] * silos)), rng, minimum)


class Quantity(Partition):
    """Silos of unequal size with the same class mix."""

    kind: Literal["quantity"] = Field(default="quantity", description="Selects this kind of partition.")
    alpha: Float = Field(
        gt=0, description="The concentration of the Dirichlet distribution of sizes: the smaller, the more unequal."
    )

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """Distribute the images; see ``quantity``."""
        return quantity(np.zeros(len(images)), self.silos, rng, self.alpha, self.minimum)
