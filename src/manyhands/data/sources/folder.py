"""Pictures in a folder, whose subfolders are the classes."""

from __future__ import annotations

import os
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

    def left_out(self) -> dict[str, int]:
        """Count the links that lead nowhere."""
        dead = sum(path.is_symlink() and not path.exists() for path, _ in self._names())
        return {"links that lead nowhere": dead} if dead else {}

    def _files(self) -> Iterator[tuple[Path, str]]:
        return ((path, inner) for path, inner in self._names() if path.is_file())

    def _names(self) -> Iterator[tuple[Path, str]]:
        """All files below the folder, in the order of their names."""
        if not self.path.is_dir():
            what = "is a file, not a folder" if self.path.exists() else "there is no such folder"
            raise DataError(f"{self.path}: {what}")
        for path in sorted(_below(self.path, {self.path.resolve()})):
            inner = path.relative_to(self.path).as_posix()
            if not is_hidden(inner):
                yield path, inner


def _below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """The files below a folder, also in linked folders; each folder is entered once, since links may form rings."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                yield folder / entry.name
            elif (place := (folder / entry.name).resolve()) not in seen:
                seen.add(place)
                yield from _below(folder / entry.name, seen)
