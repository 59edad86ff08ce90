"""By an id of each image, such as a writer, a patient or a device."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from manyhands.data.images import Images
from manyhands.data.partition.base import (
    Partition,
    Parts,
    rows_of,
)
from manyhands.data.sources.idx_file import read_idx
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
    """All images of an id, such as a patient, go to one silo. A file has the id of each image."""

    kind: Literal["by_id"] = Field(default="by_id", description="Selects this kind of partition.")
    ids: Path = Field(description="The file of ids: an idx file, or a text or CSV file with one line for each image.")
    column: Int = Field(default=0, ge=0, description="The column of the file that holds the ids, counted from 0.")

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """Distribute the images; see ``by_id``."""
        ids = rows_of(images, self._read(), self.ids, "ids")
        return by_id(ids, self.silos, rng, self.minimum)

    def _read(self) -> np.ndarray:
        if self.ids.suffix in {".txt", ".csv"}:
            try:
                lines = [line for line in self.ids.read_text().splitlines() if line.strip()]
                return np.array([line.split(",")[self.column].strip() for line in lines])
            except (OSError, UnicodeDecodeError, IndexError) as error:
                raise DataError(f"{self.ids}: has no column {self.column} of ids: {error}") from None
        table = read_idx(self.ids)
        if table.ndim > 2 or (table.ndim == 2 and self.column >= table.shape[1]):
            raise DataError(f"{self.ids}: holds an array of shape {table.shape}, which has no column {self.column}")
        return table if table.ndim == 1 else table[:, self.column]
