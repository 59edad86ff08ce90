"""The source of images that a path alone names."""

from __future__ import annotations

from pathlib import Path

from manyhands.data.sources.file_source import FileSource
from manyhands.data.sources.folder import Folder
from manyhands.data.sources.table import Table
from manyhands.data.sources.zip import Zip

TABLES = {".csv", ".tsv", ".parquet"}


def source_of_path(path: str) -> FileSource:
    """Return the source that a path names: a zip file, a table by its suffix, or else a folder."""
    suffix = Path(path).suffix.lower()
    if suffix == ".zip":
        return Zip(path=Path(path))
    return Table(path=Path(path)) if suffix in TABLES else Folder(path=Path(path))
