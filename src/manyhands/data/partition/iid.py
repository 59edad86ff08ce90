"""Equal shares at random."""

from __future__ import annotations

from typing import Literal

import numpy as np

from manyhands.data.images import Images
from manyhands.data.partition.base import (
    Partition,
    Parts,
    top_up,
)


def iid(labels: np.ndarray, silos: int, rng: np.random.Generator, minimum: int = 1) -> Parts:
    """Equal shares at random."""
    return top_up(np.array_split(rng.permutation(len(labels)), silos), rng, minimum)


class Iid(Partition):
    """Equal shares at random."""

    kind: Literal["iid"] = "iid"

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """See ``iid``."""
        return iid(np.zeros(len(images)), self.silos, rng, self.minimum)
