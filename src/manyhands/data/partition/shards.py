"""A few classes at each silo."""

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
    labels_of,
    top_up,
)
from manyhands.spec import Int


def shards(labels: np.ndarray, silos: int, rng: np.random.Generator, classes_per_silo: int, minimum: int = 1) -> Parts:
    """Sort the images by label, cut them into equal shards and give each silo some shards: it has few classes.

    References:
        Communication-Efficient Learning of Deep Networks from Decentralized Data, McMahan et al., 2017,
            arXiv 1602.05629
    """
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(by_label, silos * classes_per_silo)
    order = rng.permutation(len(pieces)).reshape(silos, classes_per_silo)
    return top_up([np.concatenate([pieces[i] for i in row]) for row in order], rng, minimum)


class Shards(Partition):
    """A few classes at each silo: images are sorted by label and cut into shards."""

    kind: Literal["shards"] = Field(default="shards", description="Selects this kind of partition.")
    classes_per_silo: Int = Field(
        default=2, ge=1, le=10_000, description="The number of shards of a silo, which is about its number of classes."
    )

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """Distribute the images; see ``shards``."""
        return shards(labels_of(images), self.silos, rng, self.classes_per_silo, self.minimum)

    def check_data(self, domains: Sequence[str], *, labelled: bool) -> None:
        """Check that there are labels, and no domains."""
        check_labelled(self.kind, labelled=labelled)
        super().check_data(domains, labelled=labelled)
