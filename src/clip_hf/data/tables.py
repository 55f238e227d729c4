"""Files of samples, any row of which can be read by itself: lines of text, Parquet and tar shards.

A row is a dictionary of columns. What is damaged costs the rows that it touches: these raise `BrokenSampleError` when
they are read, and all others stay what they are.
"""

import csv
import io
import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Image

from clip_hf.data.shapes import ShapesDataset
from clip_hf.data.tar_index import TarIndex, read_members

IMAGE_ENDINGS = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2"}
TEXT_ENDINGS = {"txt", "text", "caption"}
_COLUMN_BATCH = 10_000


class BrokenSampleError(ValueError):
    """A sample cannot be read; the message names it and says why."""


class Table(Protocol):
    """Rows of columns."""

    name: str

    @property
    def column_names(self) -> Sequence[str]:
        """Returns the names of the columns."""

    def __len__(self) -> int:
        """Returns the number of rows."""

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Returns a row, or at least those of the columns named that it has."""


class LinesTable:
    """A JSON object a line, or a CSV file with a header, its columns divided by commas, semicolons or tabs.

    Args:
        path: of a file on this machine.
        name: what errors call it.

    Raises:
        ValueError: the file is not text of this kind.
    """

    def __init__(self, path: str, name: str) -> None:
        self.name = name
        self._file: IO[bytes] = open(path, "rb")
        self._starts = array("q")
        is_csv = PurePosixPath(name).suffix in {".csv", ".tsv"}
        self._parse = self._read_csv if is_csv else self._read_json
        try:
            self._index_csv() if is_csv else self._index_json()
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{name} is not {'CSV' if is_csv else 'JSON lines'} in UTF-8: {error}") from error

    def _index_json(self) -> None:
        position, problem = 0, "it is empty"
        self.column_names: list[str] = []
        for line in self._file:
            if line.strip():
                self._starts.append(position)
                if not self.column_names:
                    try:
                        self.column_names = list(self._read_json(line.decode()))
                    except ValueError as error:
                        problem = str(error)
            position += len(line)
        self._starts.append(position)
        if not self.column_names:
            raise ValueError(f"{self.name} has no JSON object in any line: {problem}")

    def _index_csv(self) -> None:
        header = self._file.readline().decode("utf-8-sig")
        self._delimiter = max(",\t;", key=header.count)
        self.column_names = next(csv.reader([header], delimiter=self._delimiter), [])
        position = self._file.tell()

        def lines() -> Iterator[str]:
            nonlocal position
            for line in self._file:
                position += len(line)
                yield line.decode()

        self._starts.append(position)
        for fields in csv.reader(lines(), delimiter=self._delimiter):
            if fields:
                self._starts.append(position)
            else:
                self._starts[-1] = position

    def __len__(self) -> int:
        return len(self._starts) - 1

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Returns a row.

        Raises:
            BrokenSampleError: the line is damaged.
        """
        start, end = self._starts[index], self._starts[index + 1]
        line = os.pread(self._file.fileno(), end - start, start)
        try:
            return self._parse(line.decode())
        except (ValueError, csv.Error) as error:
            raise BrokenSampleError(f"{self.name}, row {index}: {error}") from error

    def _read_json(self, line: str) -> dict[str, Any]:
        row = json.loads(line.split("\n", 1)[0].removeprefix("\ufeff"))
        if not isinstance(row, dict):
            raise ValueError(f"it is no JSON object but {line:.40}")
        return row

    def _read_csv(self, line: str) -> dict[str, Any]:
        fields = next(csv.reader(io.StringIO(line, newline=""), delimiter=self._delimiter))
        if len(fields) != len(self.column_names):
            raise ValueError(f"it has {len(fields)} fields, the header {len(self.column_names)}")
        return dict(zip(self.column_names, fields, strict=True))


class ParquetTable:
    """A Parquet file; the row group of the last row stays in memory.

    Args:
        path: of a file on this machine.
        name: what errors call it.

    Raises:
        ValueError: it is no Parquet file.
    """

    def __init__(self, path: str, name: str) -> None:
        self.name = name
        try:
            self._file = pq.ParquetFile(path)
            metadata = self._file.metadata
            self.column_names = self._file.schema_arrow.names
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{name} is not a whole Parquet file: {error}") from error
        self._ends: list[int] = []
        for group in range(metadata.num_row_groups):
            self._ends.append(metadata.row_group(group).num_rows + (self._ends[-1] if group else 0))
        self._group: tuple[Any, pa.Table | Exception] = (None, pa.table({}))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Returns a row, or some of its columns.

        Raises:
            BrokenSampleError: its row group is damaged.
        """
        group = next(number for number, end in enumerate(self._ends) if index < end)
        if self._group[0] != (group, columns):
            self._group = ((group, columns), self._read(group, columns))
        rows = self._group[1]
        if isinstance(rows, Exception):
            raise BrokenSampleError(f"{self.name}, row {index}: {rows}") from rows
        start = self._ends[group - 1] if group else 0
        return rows.slice(index - start, 1).to_pylist()[0]

    def _read(self, group: int, columns: Sequence[str] | None) -> pa.Table | Exception:
        try:
            return self._file.read_row_group(group, columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            return error


class TarTable:
    """A tar file as of WebDataset: files that follow one another and share a name up to its first dot are a row.

    Its columns are the endings of these files and the keys of a `.json` among them; and, under the names that every
    kind of source has, `image` (the bytes of a file with an image's ending), `text` and `key`.

    Args:
        path: of a file on this machine.
        name: what errors call it.

    Raises:
        ValueError: it is no tar file, or compressed.
    """

    def __init__(self, path: str, name: str) -> None:
        self.name = name
        self._file: IO[bytes] = open(path, "rb")
        self._index = TarIndex(self._file.fileno(), name)
        self.column_names = list(self.row(0)) if self._index.starts else []

    def __len__(self) -> int:
        return len(self._index.starts) + (self._index.damage is not None)

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Returns a row, or some of its columns.

        Raises:
            BrokenSampleError: the archive ends or is damaged here, or a .json in it is.
        """
        if index >= len(self._index.starts):
            raise BrokenSampleError(f"{self.name}: {self._index.damage}")
        key, files = read_members(self._file.fileno(), *self._index.span(index), _endings_of(columns))
        row: dict[str, Any] = {}
        try:
            for ending, data in files.items():
                kind = ending.rpartition(".")[2]
                if kind == "json":
                    row = json.loads(data) | row
                elif kind in TEXT_ENDINGS:
                    row |= {ending: data.decode(), "text": data.decode()}
                elif kind == "cls":
                    row |= {ending: data.decode()}
                else:
                    row |= {ending: data} | ({"image": data} if kind in IMAGE_ENDINGS else {})
        except (ValueError, TypeError) as error:
            raise BrokenSampleError(f"{self.name}, {key}.{ending}: {error}") from error
        return row | {"key": key}


def _endings_of(columns: Sequence[str] | None) -> set[str] | None:
    """Which files of a sample to read for some columns: None for all, since any column may lie in the .json."""
    if columns is None or "image" in columns or any(column in IMAGE_ENDINGS for column in columns):
        return None
    return TEXT_ENDINGS | {"json"} | set(columns)


class RowsTable:
    """A `datasets.Dataset`, mapped into memory, its images not decoded, its classes by their names.

    Args:
        rows: the data set.
        name: what errors call it.
    """

    def __init__(self, rows: Dataset, name: str) -> None:
        for column, feature in rows.features.items():
            if isinstance(feature, Image):
                rows = rows.cast_column(column, Image(decode=False))
        self.rows, self.name, self.column_names = rows, name, rows.column_names
        self._class_names = {
            column: feature.names for column, feature in rows.features.items() if isinstance(feature, ClassLabel)
        }
        self._views: dict[tuple[str, ...], Dataset] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Returns a row, or some of its columns."""
        key = tuple(self.column_names if columns is None else columns)
        if key not in self._views:
            self._views[key] = self.rows.select_columns([column for column in key if column in self.column_names])
        row = self._views[key][index]
        for column in self._class_names.keys() & row.keys():
            if row[column] is not None and row[column] >= 0:  # -1 is no class
                row[column] = self._class_names[column][row[column]]
        return row

    def texts(self, column: str) -> Iterator[str]:
        """Yields the values of a column as texts; a missing value is the number of its row, like no other."""
        for start in range(0, len(self.rows), _COLUMN_BATCH):
            values = self.rows[column][start : start + _COLUMN_BATCH]
            yield from (f"#{start + n}" if value is None else str(value) for n, value in enumerate(values))


class ShapesTable:
    """Shapes that are drawn when a row is read; the captions alone are all that fit one.

    Args:
        shapes: what to draw.
    """

    name, column_names = "shapes", ("image", "text")

    def __init__(self, shapes: ShapesDataset) -> None:
        self.shapes = shapes

    def __len__(self) -> int:
        return len(self.shapes)

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Returns a row, or its captions."""
        if columns is not None and "image" not in columns:
            return {"text": self.shapes.combination(index).captions}
        return self.shapes[index]


KINDS: dict[str, Callable[[str, str], Table]] = {
    ".jsonl": LinesTable,
    ".csv": LinesTable,
    ".tsv": LinesTable,
    ".parquet": ParquetTable,
    ".tar": TarTable,
}
"""The class that reads a file, by its ending."""


def open_table(path: str, name: str) -> Table:
    """Returns the table of a file.

    Args:
        path: of the file on this machine.
        name: what errors call it; its ending says what it is.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is not what its ending says.
    """
    return KINDS[PurePosixPath(name).suffix](path, name)
