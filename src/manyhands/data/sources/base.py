"""The base of sources: a set of images that knows its classes without reading an image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from PIL import Image

from manyhands.data.images import Images
from manyhands.data.resize import resized
from manyhands.errors import DataError
from manyhands.registry import SOURCES, OneOf
from manyhands.spec import Spec


class Source(Spec, ABC):
    """A set of images that one party holds. A subclass says its ``classes`` and how to ``load`` it."""

    if TYPE_CHECKING:  # a field of each class

        @property
        def kind(self) -> str:
            """The name of its kind in a recipe."""
            ...

    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes that the images are labelled with; empty for a source without labels."""

    @abstractmethod
    def load(self, size: int, channels: int = 1, classes: tuple[str, ...] | None = None) -> Images:
        """Read all images. ``Images.from_arrays`` and ``Images.from_dataset`` bring them to this form.

        Args:
            size: The side of the square images in pixels; pictures are cropped and resized to it.
            channels: 1 for grey, 3 for RGB.
            classes: The names of the classes, in the order of the labels; None for the classes of this source, and
                empty for images without labels.

        Returns:
            N images as bytes, (N, channels, size, size), with their labels.
        """


AnySource = Annotated[Source, OneOf(SOURCES, by_name=True)]


def images_of_array(
    pixels: np.ndarray, labels: np.ndarray | None, size: int, channels: int, classes: tuple[str, ...], where: str
) -> Images:
    """Resize grey images (N, H, W) or colour images (N, H, W, 3) of bytes; ``where`` names them in errors."""
    if not len(pixels):
        raise DataError(f"{where}: holds no images")
    picture = np.stack([resized(Image.fromarray(image), size, channels) for image in pixels])
    try:
        return Images(torch.from_numpy(picture), label_tensor(labels) if classes else None, classes)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def label_tensor(labels: Any) -> torch.Tensor | None:
    """Return the class numbers as int64, (N,)."""
    return None if labels is None else torch.from_numpy(np.asarray(labels).astype(np.int64))
