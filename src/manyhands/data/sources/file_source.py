"""The base of sources of files: what they list, how values become bytes, the ids of images, and what is not read."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from pydantic import Field, field_validator

from manyhands.data.formats.intensity import Intensity
from manyhands.data.formats.kinds import NAMES, NotRead, Opener, decoders, frames_of, readable_format
from manyhands.data.formats.place import Place
from manyhands.data.ids import check_sides, hash_ids
from manyhands.data.images import Images
from manyhands.data.sources.base import Source
from manyhands.data.sources.decoding import ImageFile
from manyhands.data.sources.image_files import class_folder, class_of, images_of_files
from manyhands.errors import DataError
from manyhands.spec import Float


class Entry(NamedTuple):
    """A file of a source.

    Args:
        place: Where it is.
        inner: Its name below the source.
        version: What is another text when it has changed; "" where that is not known.
        label: The name of its class, where it is not that of its folder.
        identity: Its id, where the source knows it.
        held: Whether it is held out, where the source knows it.
    """

    place: Place
    inner: str
    version: str = ""
    label: str = ""
    identity: str = ""
    held: bool | None = None


class Listing(NamedTuple):
    """The images of a source in the order of their rows.

    Args:
        files: How each is opened, its class and its name.
        identities: The id of each; "" for none.
        held: Whether each is held out; None where the source does not know it.
        unread: Lines about the files that are not read.
    """

    files: list[ImageFile]
    identities: list[str]
    held: list[bool | None]
    unread: tuple[str, ...]

    def places(self) -> list[tuple[Place, int]]:
        """Return the file of each image, and its number in that file."""
        openers = [file.open for file in self.files]
        return [(opener.place, opener.frame) for opener in openers if isinstance(opener, Opener)]


class FileSource(Source):
    """Files of PNG, JPEG, TIFF (each page is an image) and DICOM (each frame is an image)."""

    unreadable: Float = Field(
        default=0.01, ge=0, le=1, description="The share of unreadable pictures to skip; with more, the run stops."
    )
    intensity: Intensity | None = Field(
        default=None,
        description="Which values become black and white: those of the bits stored ('bits'), the least and the largest "
        "of each image ('range'), its first and 99th percentile ('percentiles'), those of the window that each DICOM "
        "file must have ('dicom'), or two values. None: the window of a DICOM file, or its range where it has none and "
        "more than 8 bits; of other files, the bits stored.",
    )
    ids: str | None = Field(
        default=None,
        description="What images that must not be separated share: 'patient' (the patient id in DICOM files), 'folder' "
        "(the folder that they are in, below that of their class), or a regular expression with one group, which is "
        "searched in the name below the source. Whole ids are held out. No id is kept, only a hash with a key that no "
        "other process has.",
    )
    class_names: dict[str, str] = Field(
        default_factory=dict,
        description="The name that the recipe has for a class, by the source's own name, where they differ.",
    )

    @field_validator("ids")
    @classmethod
    def _has_one_group(cls, ids: str | None) -> str | None:
        if ids not in (None, "patient", "folder"):
            try:
                groups = re.compile(str(ids)).groups
            except re.error as error:
                raise ValueError(f"is {ids!r}, which is no regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"is {ids!r}; 'patient', 'folder' or a regular expression with one group is expected")
        return ids

    @property
    @abstractmethod
    def title(self) -> str:
        """The name of the source in messages."""

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """List all files in the order of their names, without opening one, but for those that a system hides."""

    @abstractmethod
    def count(self) -> int:
        """Return about how many images there are, without opening one."""

    @property
    def has_ids(self) -> bool:
        """Whether each image must have an id."""
        return self.ids is not None

    def left_out(self) -> dict[str, int]:
        """Count what is listed and not taken, by the reason."""
        return {}

    def classes(self) -> tuple[str, ...]:
        """Return the names of the folders that hold images."""
        folders = set[str]()
        for entry in self.entries():
            folder = entry.inner.rpartition("/")[0]
            if folder and folder not in folders and is_image(entry):
                folders.add(folder)
        return tuple(sorted({self.class_names.get(name, name) for name in folders}))

    def load(self, size: int, channels: int = 1, classes: tuple[str, ...] | None = None) -> Images:
        """Read all images; see ``Source``."""
        classes = self.classes() if classes is None else classes
        return self.read(self.listing(classes), size, channels, classes)

    def listing(self, classes: tuple[str, ...]) -> Listing:
        """List the images; of DICOM and TIFF files, the headers are read."""
        listing, unread = Listing([], [], [], ()), Counter(self.left_out())
        for entry in self.entries():
            try:
                self._add(listing, entry, classes)
            except NotRead as reason:
                unread[str(reason)] += 1
        lines = tuple(f"{self.title}: {count:,} {reason}" for reason, count in unread.most_common())
        if not listing.files:
            raise DataError("; ".join([f"{self.title}: holds no {NAMES} files", *lines]))
        return listing._replace(unread=lines)

    def read(self, listing: Listing, size: int, channels: int, classes: tuple[str, ...]) -> Images:
        """Read the images of a listing; see ``Source.load``."""
        settings = f"{self.intensity} {decoders()}"
        files, title = listing.files, self.title
        images = images_of_files(title, files, size, channels, classes, self.unreadable, settings=settings)
        rows = torch.arange(len(files)) if images.rows is None else images.rows
        ids = self._ids(listing, rows.tolist())
        held = None if None in listing.held else torch.tensor(listing.held, dtype=torch.bool)
        if ids is not None and held is not None:
            check_sides(ids, held[rows], title)
        return replace(
            images,
            skipped=(*listing.unread, *images.skipped),
            ids=ids,
            held=None if held is None else held[rows],
        )

    def _add(self, listing: Listing, entry: Entry, classes: tuple[str, ...]) -> None:
        """Add the images of a file."""
        kind = readable_format(entry.place, entry.inner)
        label = self.class_number(entry, classes)
        numbers, patient = frames_of(entry.place, kind)
        identity, name = entry.identity or self._identity(entry.inner, patient, classes), str(entry.place)
        for frame in numbers:
            opener = Opener(entry.place, kind, frame, self.intensity)
            full_name = name if len(numbers) == 1 else f"{name}[{frame}]"
            listing.files.append(ImageFile(full_name, label, opener, entry.version))
            listing.identities.append(identity)
            listing.held.append(entry.held)

    def class_number(self, entry: Entry, classes: tuple[str, ...]) -> int:
        """Return the number of the class of a file: of its folder."""
        return class_of(self.title, entry.inner, classes, self.class_names)

    def _identity(self, inner: str, patient: str, classes: tuple[str, ...]) -> str:
        """The id of a file by its name below the source, or by its header; "" for none."""
        if self.ids is None:
            return ""
        if self.ids == "patient":
            return patient
        if self.ids == "folder":
            folder = inner.rpartition("/")[0]
            return folder.removeprefix(class_folder(inner, classes, self.class_names)).strip("/")
        match = re.search(self.ids, inner)
        return (match[1] or "") if match else ""

    def _ids(self, listing: Listing, rows: Sequence[int]) -> torch.Tensor | None:
        """The hashes of the ids of these rows; an image without one is an error."""
        if not self.has_ids:
            return None
        if lacking := [listing.files[row].name for row in rows if not listing.identities[row]]:
            raise DataError(
                f"{self.title}: {len(lacking):,} images have no id, the first is {lacking[0]}; give each an id, or "
                "leave ids out"
            )
        return hash_ids(listing.identities[row] for row in rows)


def is_image(entry: Entry) -> bool:
    """Whether a file is read; it is opened if its name does not say what it is."""
    try:
        return bool(readable_format(entry.place, entry.inner))
    except NotRead:
        return False
