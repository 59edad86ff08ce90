"""Random shares of equal size."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from manyhands.data.images import Images
from manyhands.data.partition.base import (
    Partition,
    Parts,
    top_up,
)


def iid(labels: np.ndarray, silos: int, rng: np.random.Generator, minimum: int = 1) -> Parts:
    """Random shares of equal size."""
    return top_up(np.array_split(rng.permutation(len(labels)), silos), rng, minimum)


class Iid(Partition):
    """Random shares of equal size."""

    kind: Literal["iid"] = Field(default="iid", description="Selects this kind of partition.")

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """Distribute the images; see ``iid``."""
        return iid(np.zeros(len(images)), self.silos, rng, self.minimum)
