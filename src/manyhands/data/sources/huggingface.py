"""A data set of the Hugging Face hub."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from pydantic import Field

from manyhands.data.images import Images
from manyhands.data.sources.base import Source
from manyhands.data.sources.decoding import ImageFile, open_cell
from manyhands.data.sources.image_files import class_of, images_of_files
from manyhands.errors import DataError
from manyhands.spec import Float


class HuggingFace(Source):
    """A data set of the Hugging Face hub, or a folder that the package ``datasets`` reads.

    It needs the extra ``manyhands[huggingface]``.
    """

    kind: Literal["huggingface"] = Field(default="huggingface", description="Selects this kind of source.")
    name: str = Field(description="The name of the data set on the hub, or the path of a folder.")
    config: str | None = Field(default=None, description="The configuration of the data set; None for its default one.")
    split: str = Field(default="train", description="The split to load, such as train or test.")
    image: str = Field(default="image", description="The column that holds the images.")
    label: str | None = Field(
        default="label", description="The column that holds the class labels; None for images without labels."
    )
    unreadable: Float = Field(
        default=0.01, ge=0, le=1, description="The share of unreadable pictures to skip; with more, the run stops."
    )

    def classes(self) -> tuple[str, ...]:
        """Return the names that the data set gives its labels."""
        if self.label is None:
            return ()
        feature = self._column(self._rows(), self.label)
        if not hasattr(feature, "names"):
            raise DataError(f"{self.name}: column {self.label!r} is not a class label but {feature}")
        return tuple(feature.names)

    def load(self, size: int, channels: int = 1, classes: tuple[str, ...] | None = None) -> Images:
        """Read all images; see ``Source``."""
        classes = self.classes() if classes is None else classes
        rows = self._rows()
        self._column(rows, self.image)
        labels = [0] * len(rows) if self.label is None else self._labels(rows, classes)
        version = getattr(rows, "_fingerprint", "")
        files = [
            ImageFile(f"{self.name}[{i}]", label, partial(open_cell, rows, i, self.image), version)
            for i, label in enumerate(labels)
        ]
        return images_of_files(self.name, files, size, channels, classes if self.label else (), self.unreadable)

    def _labels(self, rows: Any, classes: tuple[str, ...]) -> list[int]:
        """Translate the labels, which are positions in the data set's own names, to positions in ``classes``."""
        numbers = [class_of(self.name, f"{name}/", classes, {}) for name in self.classes()]
        return [numbers[label] for label in rows[self.label]]

    def _rows(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise DataError("source huggingface needs another package: pip install 'manyhands[huggingface]'") from None
        try:
            return datasets.load_dataset(self.name, self.config, split=self.split)
        except Exception as error:  # the library raises errors of many kinds, its own and its network's
            raise DataError(f"{self.name}: datasets cannot load it: {error}") from error

    def _column(self, rows: Any, name: str) -> Any:
        if name not in rows.features:
            raise DataError(f"{self.name}: has no column {name!r}, but {', '.join(rows.features)}")
        return rows.features[name]
