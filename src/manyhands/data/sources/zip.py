"""Pictures in a zip file, whose folders are the classes."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from manyhands.data.formats.kinds import format_by_name, is_hidden
from manyhands.data.formats.place import Place
from manyhands.data.sources.file_source import Entry, FileSource
from manyhands.errors import DataError


class Zip(FileSource):
    """PNG, JPEG, TIFF and DICOM files in a zip file, arranged as in ``Folder`` and read without unpacking."""

    kind: Literal["zip"] = Field(default="zip", description="Selects this kind of source.")
    path: Path = Field(description="The zip file.")
    under: str = Field(
        default="", description="The folder inside the zip file that holds the classes; empty for the top."
    )

    @property
    def title(self) -> str:
        """The name of the source in messages."""
        return f"{self.path}: {self.under}" if self.under else str(self.path)

    def entries(self) -> Iterator[Entry]:
        """List all files, without opening one; see ``FileSource``."""
        prefix = f"{self.under.strip('/')}/" if self.under else ""
        for info in members(self.path):
            inner = info.filename.removeprefix(prefix)
            if info.filename.startswith(prefix) and not is_hidden(inner):
                yield Entry(Place(str(self.path), info.filename), inner, f"{info.file_size} {info.CRC:x}")

    def count(self) -> int:
        """Return the number of files that may be images, without opening one."""
        return sum(format_by_name(entry.inner) is not None for entry in self.entries())


def members(path: Path) -> list[zipfile.ZipInfo]:
    """List the files in a zip file in the order of their names."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is not a readable zip file: {error}") from None
    return [infos[name] for name in sorted(infos)]
