"""Pictures in a folder, whose subfolders are the classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic import Field

from manyhands.data.images import Images
from manyhands.data.sources.base import Source
from manyhands.data.sources.decoding import ImageFile
from manyhands.data.sources.image_files import class_names, class_of, images_of_files, is_picture, version_of
from manyhands.errors import DataError
from manyhands.spec import Float


class Folder(Source):
    """PNG and JPEG pictures: in one folder for each class, or all in one folder without labels."""

    kind: Literal["folder"] = Field(default="folder", description="Selects this kind of source.")
    path: Path = Field(description="The folder, whose subfolders are the classes.")
    unreadable: Float = Field(
        default=0.01, ge=0, le=1, description="The share of unreadable pictures to skip; with more, the run stops."
    )

    def classes(self) -> tuple[str, ...]:
        """Return the names of the folders that hold pictures."""
        return class_names(path.relative_to(self.path).as_posix() for path in self._pictures())

    def files(self) -> list[Path]:
        """Return the paths of the pictures in the order in which they are read, without opening one."""
        return self._pictures()

    def load(self, size: int, channels: int = 1, classes: tuple[str, ...] | None = None) -> Images:
        """Read all images; see ``Source``."""
        classes = self.classes() if classes is None else classes
        files = [
            ImageFile(
                str(path),
                class_of(path.relative_to(self.path).as_posix(), classes),
                partial(Image.open, path),
                version_of(path),
            )
            for path in self._pictures()
        ]
        return images_of_files(str(self.path), files, size, channels, classes, self.unreadable)

    def _pictures(self) -> list[Path]:
        if not self.path.is_dir():
            raise DataError(f"{self.path}: there is no such folder")
        pictures = sorted(
            path
            for path in self.path.rglob("*")
            if is_picture(path.relative_to(self.path).as_posix()) and path.is_file()
        )
        if not pictures:
            raise DataError(f"{self.path}: holds no PNG or JPEG pictures")
        return pictures
