"""Pictures in a folder, whose subfolders are the classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from manyhands.data.formats.kinds import format_by_name, is_hidden
from manyhands.data.formats.place import Place
from manyhands.data.sources.file_source import Entry, FileSource
from manyhands.data.sources.image_files import version_of
from manyhands.errors import DataError


class Folder(FileSource):
    """PNG, JPEG, TIFF and DICOM files: in one folder for each class, or all in one folder without labels."""

    kind: Literal["folder"] = Field(default="folder", description="Selects this kind of source.")
    path: Path = Field(description="The folder, whose subfolders are the classes.")

    @property
    def title(self) -> str:
        """The name of the source in messages."""
        return str(self.path)

    def entries(self) -> Iterator[Entry]:
        """List all files, without opening one; see ``FileSource``."""
        for path, inner in self._files():
            yield Entry(Place(str(path)), inner, version_of(path))

    def count(self) -> int:
        """Return the number of files that may be images, without opening one."""
        return sum(format_by_name(inner) is not None for _, inner in self._files())

    def _files(self) -> Iterator[tuple[Path, str]]:
        if not self.path.is_dir():
            raise DataError(f"{self.path}: there is no such folder")
        for path in sorted(self.path.rglob("*")):
            inner = path.relative_to(self.path).as_posix()
            if not is_hidden(inner) and path.is_file():
                yield path, inner
