"""Handwritten digits that come with scikit-learn."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from manyhands.data.images import Images
from manyhands.data.sources.base import Source, images_of_array


class Digits(Source):
    """1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn, without a download.

    References:
        Optical Recognition of Handwritten Digits, Alpaydin, Kaynak, 1998, UCI Machine Learning Repository
    """

    kind: Literal["digits"] = Field(default="digits", description="Selects this kind of source.")

    def classes(self) -> tuple[str, ...]:
        """Return the ten digits."""
        return tuple("0123456789")

    def load(self, size: int, channels: int = 1, classes: tuple[str, ...] | None = None) -> Images:
        """Read all images; see ``Source``."""
        classes = self.classes() if classes is None else classes
        from sklearn.datasets import load_digits

        bunch = load_digits()
        grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        return images_of_array(grey, bunch.target, size, channels, classes, "digits")
