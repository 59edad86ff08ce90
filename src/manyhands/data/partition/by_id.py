"""By an id of each image, such as a writer, a patient or a device."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from manyhands.data.ids import number_ids, read_ids
from manyhands.data.images import Images
from manyhands.data.partition.base import (
    Partition,
    Parts,
    rows_of,
)
from manyhands.errors import DataError
from manyhands.spec import Int


def by_id(ids: np.ndarray, silos: int, rng: np.random.Generator, minimum: int = 1) -> Parts:
    """Give all images of an id (a writer, a patient) to one silo; the smallest silo takes the next id."""
    groups, counts = np.unique(ids, return_counts=True)
    if len(groups) < silos:
        raise DataError(f"{len(groups)} ids are too few for {silos} silos")
    sizes, owner = np.zeros(silos, dtype=int), np.empty(len(groups), dtype=int)
    for group in rng.permutation(len(groups)):
        owner[group] = int(sizes.argmin())
        sizes[owner[group]] += counts[group]
    if sizes.min() < minimum:
        raise DataError(f"a silo would have {sizes.min()} images, fewer than the minimum of {minimum}: use fewer silos")
    silo_of = owner[np.searchsorted(groups, ids)]
    return [np.flatnonzero(silo_of == silo) for silo in range(silos)]


class ById(Partition):
    """All images of an id, such as a patient, go to one silo. The images have ids, or a file has the id of each."""

    kind: Literal["by_id"] = Field(default="by_id", description="Selects this kind of partition.")
    ids: Path | None = Field(
        default=None,
        description="The file of ids: an idx file, or a text or CSV file with one line for each image. None for the "
        "ids that the images have.",
    )
    column: Int = Field(default=0, ge=0, description="The column of the file that holds the ids, counted from 0.")

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """Distribute the images; see ``by_id``."""
        return by_id(self._ids(images), self.silos, rng, self.minimum)

    def _ids(self, images: Images) -> np.ndarray:
        if self.ids is not None:
            return rows_of(images, read_ids(self.ids, self.column), self.ids, "ids")
        if images.ids is None:
            raise DataError(
                "partition 'by_id' has no file of ids, and these images have no ids: set partition.ids to a file, or "
                "name the ids in the source: the column `id` of a table, or `ids` of a folder or a zip file"
            )
        return number_ids(images.ids.numpy())
