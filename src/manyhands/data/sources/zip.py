"""Pictures in a zip file, whose folders are the classes."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

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
        for member in members(self.path):
            inner = member.name.removeprefix(prefix)
            if member.name.startswith(prefix) and not is_hidden(inner):
                yield Entry(Place(str(self.path), member.name), inner, member.version)

    def count(self) -> int:
        """Return the number of files that may be images, without opening one."""
        return sum(format_by_name(entry.inner) is not None for entry in self.entries())


class Member(NamedTuple):
    """A file in a zip file: its ``name`` there, and a ``version`` that is another text when it has changed."""

    name: str
    version: str


def members(path: Path) -> Sequence[Member]:
    """List the files in a zip file in the order of their names."""
    try:
        return _members(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is not a readable zip file: {error}") from None


@lru_cache(maxsize=1)
def _members(path: Path, changed: int) -> Sequence[Member]:  # noqa: ARG001 - a changed file is another key
    """The list of the last zip file: its classes and its images are asked for one after the other."""
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    return [Member(name, f"{infos[name].file_size} {infos[name].CRC:x}") for name in sorted(infos)]
