"""Where images come from: folders, zip files, data sets. A source knows its classes without reading an image."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from manyhands.data.idx import read_idx
from manyhands.data.images import Images
from manyhands.data.pictures import resized
from manyhands.errors import DataError
from manyhands.registry import SOURCES, OneOf
from manyhands.spec import Float, Spec

# everything that Pillow and zipfile raise for a picture that cannot be read
UNREADABLE = (
    OSError, SyntaxError, ValueError, RuntimeError, EOFError, zlib.error, struct.error,
    zipfile.BadZipFile, Image.DecompressionBombError,
)  # fmt: skip
MAX_CLASSES = 65_536
_PICTURES = {".png", ".jpg", ".jpeg"}
Entry = tuple[str, int, Callable[[], Image.Image]]
"""A picture: its name for messages, its class number, and a function that opens it."""


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
        return _of_array(grey, bunch.target, size, channels, classes, "digits")


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
        return _of_array(pixels, labels, size, channels, classes, str(self.labels or self.images))

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


class Folder(Source):
    """PNG and JPEG pictures: in one folder for each class, or all in one folder without labels."""

    kind: Literal["folder"] = Field(default="folder", description="Selects this kind of source.")
    path: Path = Field(description="The folder, whose subfolders are the classes.")
    unreadable: Float = Field(
        default=0.01, ge=0, le=1, description="The share of unreadable pictures to skip; with more, the run stops."
    )

    def classes(self) -> tuple[str, ...]:
        """Return the names of the folders that hold pictures."""
        return _class_names(path.relative_to(self.path).as_posix() for path in self._pictures())

    def files(self) -> list[Path]:
        """Return the paths of the pictures in the order in which they are read, without opening one."""
        return self._pictures()

    def load(self, size: int, channels: int = 1, classes: tuple[str, ...] | None = None) -> Images:
        """Read all images; see ``Source``."""
        classes = self.classes() if classes is None else classes
        entries = [
            (str(path), _class_of(path.relative_to(self.path).as_posix(), classes), _opener(path))
            for path in self._pictures()
        ]
        return _of_entries(str(self.path), entries, size, channels, classes, self.unreadable)

    def _pictures(self) -> list[Path]:
        if not self.path.is_dir():
            raise DataError(f"{self.path}: there is no such folder")
        pictures = sorted(
            path
            for path in self.path.rglob("*")
            if _is_picture(path.relative_to(self.path).as_posix()) and path.is_file()
        )
        if not pictures:
            raise DataError(f"{self.path}: holds no PNG or JPEG pictures")
        return pictures


class Zip(Source):
    """PNG and JPEG pictures in a zip file, arranged as in ``Folder`` and read without unpacking."""

    kind: Literal["zip"] = Field(default="zip", description="Selects this kind of source.")
    path: Path = Field(description="The zip file.")
    under: str = Field(
        default="", description="The folder inside the zip file that holds the classes; empty for the top."
    )
    unreadable: Float = Field(
        default=0.01, ge=0, le=1, description="The share of unreadable pictures to skip; with more, the run stops."
    )

    def classes(self) -> tuple[str, ...]:
        """Return the names of the folders that hold pictures."""
        with self._open() as archive:
            return _class_names(self._pictures(archive).values())

    def load(self, size: int, channels: int = 1, classes: tuple[str, ...] | None = None) -> Images:
        """Read all images; see ``Source``."""
        classes = self.classes() if classes is None else classes
        with self._open() as archive:
            entries = [
                (f"{self.path}: {name}", _class_of(inner, classes), _zip_opener(archive, name))
                for name, inner in self._pictures(archive).items()
            ]
            return _of_entries(str(self.path), entries, size, channels, classes, self.unreadable)

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except FileNotFoundError:
            raise DataError(f"{self.path}: there is no such file") from None
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path}: is not a readable zip file: {error}") from None

    def _pictures(self, archive: zipfile.ZipFile) -> dict[str, str]:
        """Map the name of each picture in the zip file to its name below ``under``."""
        prefix = f"{self.under.strip('/')}/" if self.under else ""
        pictures = {
            name: name.removeprefix(prefix)
            for name in sorted(archive.namelist())
            if name.startswith(prefix) and _is_picture(name)
        }
        if not pictures:
            raise DataError(f"{self.path}: holds no PNG or JPEG pictures below {self.under or 'its top'!r}")
        return pictures


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
        entries = [(f"{self.name}[{i}]", label, _row_opener(rows, i, self.image)) for i, label in enumerate(labels)]
        return _of_entries(self.name, entries, size, channels, classes if self.label else (), self.unreadable)

    def _labels(self, rows: Any, classes: tuple[str, ...]) -> list[int]:
        """Translate the labels, which are positions in the data set's own names, to positions in ``classes``."""
        numbers = [_class_of(f"{name}/", classes) for name in self.classes()]
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


def _of_array(
    pixels: np.ndarray, labels: np.ndarray | None, size: int, channels: int, classes: tuple[str, ...], where: str
) -> Images:
    if not len(pixels):
        raise DataError(f"{where}: holds no images")
    picture = np.stack([resized(Image.fromarray(image), size, channels) for image in pixels])
    try:
        return Images(torch.from_numpy(picture), _labels(labels) if classes else None, classes)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _labels(labels: Any) -> torch.Tensor | None:
    return None if labels is None else torch.from_numpy(np.asarray(labels).astype(np.int64))


def _of_entries(
    where: str, entries: list[Entry], size: int, channels: int, classes: tuple[str, ...], allowed: float
) -> Images:
    """Open every entry. Those that cannot be read are skipped and named, up to the allowed share."""
    pixels, labels, rows, skipped = [], [], [], []
    for row, (name, label, open_picture) in enumerate(entries):
        try:
            pixels.append(resized(open_picture(), size, channels))
        except UNREADABLE as error:
            skipped.append(f"{name}: {error}")
        else:
            labels.append(label)
            rows.append(row)
    if len(skipped) > allowed * len(entries):
        raise DataError(
            f"{where}: {len(skipped)} of {len(entries)} pictures cannot be read, more than the {allowed:.1%} that "
            f"'unreadable' allows; the first is {skipped[0]}"
        )
    if not pixels:
        raise DataError(f"{where}: holds no readable pictures")
    with_labels = _labels(labels) if classes else None
    kept = torch.tensor(rows) if skipped else None
    return Images(torch.from_numpy(np.stack(pixels)), with_labels, classes, rows=kept, skipped=tuple(skipped))


def _is_picture(name: str) -> bool:
    """Judge by the suffix. Files that systems hide beside pictures (``._cat.jpg``) do not count."""
    path = PurePosixPath(name)
    return path.suffix.lower() in _PICTURES and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _class_names(inner: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({name.rsplit("/", 1)[0] for name in inner if "/" in name}))


def _class_of(inner: str, classes: tuple[str, ...]) -> int:
    if not classes:
        return 0
    name = inner.rsplit("/", 1)[0] if "/" in inner else ""
    if name not in classes:
        known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
        where = f"{name!r} is not one of the {len(classes)} classes" if name else "is in none of the class folders"
        raise DataError(f"{inner}: {where} ({known})")
    return classes.index(name)


def _opener(path: Path) -> Callable[[], Image.Image]:
    return lambda: Image.open(path)


def _zip_opener(archive: zipfile.ZipFile, name: str) -> Callable[[], Image.Image]:
    return lambda: Image.open(io.BytesIO(archive.read(name)))


def _row_opener(rows: Any, number: int, column: str) -> Callable[[], Image.Image]:
    return lambda: rows[number][column]
