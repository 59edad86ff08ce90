"""Pictures in a zip file, whose folders are the classes."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from manyhands.data.images import Images
from manyhands.data.sources.base import Source
from manyhands.data.sources.decoding import ImageFile
from manyhands.data.sources.image_files import class_names, class_of, images_of_files, is_picture
from manyhands.data.sources.openers import open_member
from manyhands.errors import DataError
from manyhands.spec import Float


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
            return class_names(self._pictures(archive).values())

    def load(self, size: int, channels: int = 1, classes: tuple[str, ...] | None = None) -> Images:
        """Read all images; see ``Source``."""
        classes = self.classes() if classes is None else classes
        with self._open() as archive:
            pictures = self._pictures(archive)
            versions = {info.filename: f"{info.file_size} {info.CRC:x}" for info in archive.infolist()}
        files = [
            ImageFile(
                f"{self.path}: {name}", class_of(inner, classes), partial(open_member, self.path, name), versions[name]
            )
            for name, inner in pictures.items()
        ]
        return images_of_files(str(self.path), files, size, channels, classes, self.unreadable)

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
            if name.startswith(prefix) and is_picture(name)
        }
        if not pictures:
            raise DataError(f"{self.path}: holds no PNG or JPEG pictures below {self.under or 'its top'!r}")
        return pictures
