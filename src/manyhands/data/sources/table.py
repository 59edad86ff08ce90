"""Pictures that a table lists: a CSV or Parquet file with columns for file, label, id and split."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from manyhands.data.formats.place import Place
from manyhands.data.sources.file_source import Entry, FileSource, Listing
from manyhands.data.sources.image_files import known_classes, version_of
from manyhands.data.sources.zip import members
from manyhands.errors import DataError
from manyhands.spec import suggest

MAX_NAMED_FILES = 3
"""The most missing files that an error names."""


class Table(FileSource):
    """Files that a CSV or Parquet table lists, with a row for each file."""

    kind: Literal["table"] = Field(default="table", description="Selects this kind of source.")
    path: Path = Field(description="The table: .csv, .tsv or .parquet. A CSV begins with a line of column names.")
    files: Path | None = Field(
        default=None, description="The folder or the zip file of the files; None for the folder of the table."
    )
    file: str = Field(default="file", description="The column of file names, relative to `files`.")
    label: str | None = Field(default="label", description="The column of classes; None for images without labels.")
    id: str | None = Field(
        default=None,
        description="The column of what images that must not be separated share: a patient, a writer, a slide. Whole "
        "ids are held out. No id is kept, only a hash with a key that no other process has.",
    )
    split: str | None = Field(
        default=None, description="The column that says which images are trained on and which are held out."
    )
    train: tuple[str, ...] = Field(default=("train",), description="What it says of images that are trained on.")
    test: tuple[str, ...] = Field(
        default=("test",), description="What it says of held-out images. Rows that say anything else are left out."
    )
    where: dict[str, str] = Field(
        default_factory=dict, description="Take only the rows that have these values in these columns."
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.id and self.ids:
            raise ValueError("id names a column of ids, and ids says where else they are; one of them is expected")
        if both := set(self.train) & set(self.test):
            raise ValueError(f"train and test both name {min(both)!r}")
        return self

    @property
    def title(self) -> str:
        """The name of the source in messages."""
        return str(self.path)

    @property
    def has_ids(self) -> bool:
        """Whether each image must have an id."""
        return self.id is not None or super().has_ids

    def classes(self) -> tuple[str, ...]:
        """Return the labels: by size where all are whole numbers, and else by the alphabet."""
        if self.label is None:
            return ()
        self._check_columns([self.label], read_table(self.path)[0])
        names = {self.class_names.get(row[self.label], row[self.label]) for _, row in self._rows()}
        return tuple(sorted(names, key=int if all(name.isdecimal() for name in names) else None))

    def listing(self, classes: tuple[str, ...]) -> Listing:
        """List the images; a table of images without labels needs no column of them."""
        if classes and self.label:
            self._check_columns([self.label], read_table(self.path)[0])
        return super().listing(classes)

    def count(self) -> int:
        """Return the number of rows, without opening a picture."""
        return sum(1 for _ in self._rows())

    def class_number(self, entry: Entry, classes: tuple[str, ...]) -> int:
        """Return the number of the class in the row of a file."""
        name = self.class_names.get(entry.label, entry.label)
        if not classes or self.label is None:
            return 0
        if name not in classes:
            raise DataError(
                f"{self.path}: {entry.inner}: its {self.label} {name!r} is none of the classes (the recipe or the "
                f"other sources name {known_classes(classes)})"
            )
        return classes.index(name)

    def entries(self) -> Iterator[Entry]:
        """List the files in the order of the rows; see ``FileSource``. A missing file is an error."""
        rows = list(self._rows())
        places = (
            self._in_zip() if self._is_zip else {row[self.file]: self._in_folder(row[self.file]) for _, row in rows}
        )
        if missing := [(number, row[self.file]) for number, row in rows if places.get(row[self.file]) is None]:
            shown = ", ".join(f"{name!r} (line {number})" for number, name in missing[:MAX_NAMED_FILES])
            more = ", ..." if len(missing) > MAX_NAMED_FILES else ""
            raise DataError(f"{self.path}: {len(missing)} of {len(rows)} files are not in {self._root}: {shown}{more}")
        self._check_once(rows)
        has_test = self.split is not None and any(row[self.split] in self.test for _, row in rows)
        for _, row in rows:
            place, version = places[row[self.file]] or (Place(""), "")
            label = row.get(self.label, "") if self.label else ""
            held = row[self.split] in self.test if has_test and self.split else None
            yield Entry(place, row[self.file], version, label, row[self.id] if self.id else "", held)

    def _check_once(self, rows: Sequence[Row]) -> None:
        """Raise ``DataError`` where two rows name the same file: it might be trained on and held out."""
        lines: dict[str, int] = {}
        for number, row in rows:
            first = lines.setdefault(row[self.file], number)
            if first != number:
                raise DataError(f"{self.path}: line {number} names {row[self.file]!r} again, as line {first} does")

    def left_out(self) -> dict[str, int]:
        """Count the rows that are in neither side of the split, by what they say."""
        column = self.split
        says = Counter(row[column] for _, row in self._rows(every=True) if not self._is_split(row)) if column else {}
        return {f"rows whose {column} is {value!r}, neither train nor test": count for value, count in says.items()}

    @property
    def _root(self) -> Path:
        return self.files or self.path.parent

    @property
    def _is_zip(self) -> bool:
        return self._root.suffix.lower() == ".zip"

    def _in_zip(self) -> dict[str, tuple[Place, str] | None]:
        path = str(self._root)
        return {member.name: (Place(path, member.name), member.version) for member in members(self._root)}

    def _in_folder(self, name: str) -> tuple[Place, str] | None:
        path = self._root / name
        return (Place(str(path)), version_of(path)) if path.is_file() else None

    def _is_split(self, row: Mapping[str, str]) -> bool:
        return self.split is None or row[self.split] in (*self.train, *self.test)

    def _rows(self, *, every: bool = False) -> Iterator[tuple[int, dict[str, str]]]:
        """The rows that are asked for, with their line numbers; ``every`` also gives those on no side of the split."""
        columns, rows = read_table(self.path)
        self._check_columns([self.file, *filter(None, (self.id, self.split)), *self.where], columns)
        chosen = [(n, row) for n, row in rows if all(row[k] == v for k, v in self.where.items())]
        kept = [(n, row) for n, row in chosen if every or self._is_split(row)]
        if not kept:
            raise DataError(
                f"{self.path}: none of its {len(rows)} rows is asked for by {self._conditions() or 'the source'}"
                f"{self._sides(rows)}"
            )
        return iter(kept)

    def _sides(self, rows: Sequence[Row]) -> str:
        """What the column of the split says, for an error."""
        says = sorted({row[self.split] for _, row in rows}) if self.split else []
        return f"; {self.split} says {', '.join(map(repr, says[:MAX_NAMED_FILES]))}" if says else ""

    def _check_columns(self, names: Sequence[str], columns: Sequence[str]) -> None:
        for name in names:
            if name not in columns:
                raise DataError(f"{self.path}: has no column {name!r}; {suggest(name, list(columns))}")

    def _conditions(self) -> str:
        says = [f"{name} = {value!r}" for name, value in self.where.items()]
        return " and ".join(says + ([f"{self.split} in {(*self.train, *self.test)}"] if self.split else []))


Row = tuple[int, dict[str, str]]
"""The number of a line, and its values by column."""


def read_table(path: Path) -> tuple[list[str], list[Row]]:
    """Read a table as text: the names of its columns, and its rows with their line numbers."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such table") from None
    except (OSError, ValueError, csv.Error) as error:  # a UnicodeDecodeError and an error of Parquet are ValueErrors
        raise DataError(f"{path}: is not a table that can be read: {error}") from None


@lru_cache(maxsize=1)
def _read(path: Path, changed: int) -> tuple[list[str], list[Row]]:  # noqa: ARG001 - a changed file is another key
    """The last table: its classes, files and sides are asked for one after the other."""
    return _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)


def _csv(path: Path) -> tuple[list[str], list[Row]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            columns = list(reader.fieldnames or [])
            rows: list[tuple[int, dict[Any, Any]]] = [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not in UTF-8, save it as such: {error}") from None
    if len(columns) == 1 and ";" in columns[0]:
        raise ValueError("its values are separated by semicolons; commas are expected, or tabs in a .tsv")
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise ValueError(f"it has two columns {twice[0]!r}")
    for number, row in rows:
        if None in row or None in row.values():
            raise ValueError(f"line {number} has {'more' if None in row else 'fewer'} values than there are columns")
    return columns, [(number, {name: value.strip() for name, value in row.items()}) for number, row in rows]


def _parquet(path: Path) -> tuple[list[str], list[Row]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: Parquet needs another package: pip install 'manyhands[huggingface]'") from None
    table = parquet.ParquetFile(path).read()
    rows: list[dict[str, Any]] = table.to_pylist()
    texts = [{k: "" if v is None else str(v).strip() for k, v in row.items()} for row in rows]
    return list(table.column_names), list(enumerate(texts, 2))
