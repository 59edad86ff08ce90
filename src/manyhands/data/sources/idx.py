"""A pair of idx files, the format of MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from manyhands.data.arrays import MAX_CLASSES
from manyhands.data.images import Images
from manyhands.data.sources.base import Source, images_of_array
from manyhands.data.sources.idx_file import read_idx
from manyhands.errors import DataError


class Idx(Source):
    """A pair of idx files, plain or gzip, the format of MNIST and its family."""

    kind: Literal["idx"] = Field(default="idx", description="Selects this kind of source.")
    images: Path = Field(description="The idx file of grey images, one byte a pixel.")
    labels: Path | None = Field(
        default=None, description="The idx file with one label for each image; None for images without labels."
    )

    def classes(self) -> tuple[str, ...]:
        """Return the numbers from 0 to the largest label in the file, as names."""
        return () if self.labels is None else tuple(map(str, range(int(self._read_labels().max()) + 1)))

    def load(self, size: int, channels: int = 1, classes: tuple[str, ...] | None = None) -> Images:
        """Read all images; see ``Source``."""
        classes = self.classes() if classes is None else classes
        pixels = read_idx(self.images)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or 0 in pixels.shape[1:]:
            raise DataError(f"{self.images}: holds {pixels.dtype} of shape {pixels.shape}, not grey images as bytes")
        labels = None if self.labels is None else self._read_labels()
        if labels is not None and len(labels) != len(pixels):
            raise DataError(
                f"{self.labels}: has {len(labels):,} labels for the {len(pixels):,} images of {self.images}"
            )
        return images_of_array(pixels, labels, size, channels, classes, str(self.labels or self.images))

    def _read_labels(self) -> np.ndarray:
        labels = read_idx(Path(str(self.labels)))
        if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
            raise DataError(
                f"{self.labels}: holds {labels.dtype} of shape {labels.shape}, not one label for each image"
            )
        if not 0 <= labels.min() <= labels.max() < MAX_CLASSES:
            raise DataError(
                f"{self.labels}: has labels from {labels.min()} to {labels.max()}, which cannot be class numbers"
            )
        return labels
