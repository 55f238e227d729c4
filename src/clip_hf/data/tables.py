"""Tables of every kind: files of Parquet, tar shards, lines of text, and what `datasets` has loaded."""

import bisect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Image

from clip_hf.data.files import without_query
from clip_hf.data.rows import BrokenSampleError, RandomAccessFile, Table, first_rows, parse_object
from clip_hf.data.shapes import ShapesDataset
from clip_hf.data.tar_index import TarIndex, read_members
from clip_hf.data.text_tables import CsvTable, JsonLinesTable

IMAGE_ENDINGS = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2"}
TEXT_ENDINGS = {"txt", "text", "caption"}
KEPT_BYTES = 2**25
"""Of a Parquet file's rows that stay in memory; a stream shuffles no more of them at a time, or reads would repeat."""

_COLUMN_BATCH = 10_000


class ParquetTable:
    """A Parquet file; the row groups read last stay in memory.

    Args:
        path: of a file on this machine.
        name: what errors call it.

    Attributes:
        window: rows that may be shuffled at a time, window after window, with hardly a row group read twice.
        num_lanes: places at which windows are read in turn, for each of which as many row groups stay.

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
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        self._ends = list(itertools.accumulate(group.num_rows for group in groups))
        sizes = itertools.accumulate(group.total_byte_size for group in groups)
        num_fitting = max(1, sum(size <= KEPT_BYTES for size in sizes))
        self.window = self._ends[num_fitting - 1] if groups else 0
        self.num_lanes = 1
        self._num_kept = num_fitting + 1  # of a lane, since a window may begin within a group
        self._groups: OrderedDict[Any, pa.Table | Exception] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Returns a row, or some of its columns.

        Raises:
            BrokenSampleError: its row group is damaged.
        """
        group = bisect.bisect_right(self._ends, index)
        key = (group, None if columns is None else tuple(columns))
        if key not in self._groups:
            self._groups[key] = self._read(group, columns)
            if len(self._groups) > self.num_lanes * self._num_kept:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        rows = self._groups[key]
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
    kind of source has, `image` (the bytes of the one file with an image's ending), `text` and `key`.

    Args:
        path: of a file on this machine.
        name: what errors call it.

    Raises:
        ValueError: it is no tar file, or compressed.
    """

    def __init__(self, path: str, name: str) -> None:
        self.name = name
        self._file = RandomAccessFile(path)
        file = self._file.open()
        self._index = TarIndex(file.fileno(), name)

    @cached_property
    def column_names(self) -> Sequence[str]:
        """The names that most of the first rows have."""
        return list(first_rows(self))

    def __len__(self) -> int:
        return len(self._index.starts) + (self._index.damage is not None)

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Returns a row, or some of its columns.

        Raises:
            BrokenSampleError: the archive ends or is damaged here, or a .json in it is.
        """
        if index >= len(self._index.starts):
            raise BrokenSampleError(f"{self.name}: {self._index.damage}")
        file = self._file.open()
        key, files = read_members(file.fileno(), *self._index.span(index), _endings_of(columns))
        row: dict[str, Any] = {}
        try:
            for ending, data in files.items():
                kind = ending.rpartition(".")[2]
                if kind == "json":
                    row = parse_object(data) | row
                elif kind in TEXT_ENDINGS:
                    row |= {ending: data.decode(), "text": data.decode()}
                elif kind == "cls":
                    row |= {ending: data.decode()}
                else:
                    row |= {ending: data}
        except ValueError as error:
            raise BrokenSampleError(f"{self.name}, {key}.{ending}: {error}") from error
        images = [data for ending, data in files.items() if ending.rpartition(".")[2] in IMAGE_ENDINGS]
        return row | ({"image": images[0]} if len(images) == 1 else {}) | {"key": key}


def _endings_of(columns: Sequence[str] | None) -> set[str] | None:
    """Which files of a sample to read for some columns: None for all, since any column may lie in the .json."""
    if columns is None:
        return None
    endings = {column.rpartition(".")[2] for column in columns}
    return None if endings & {"image", *IMAGE_ENDINGS} else endings | TEXT_ENDINGS | {"json"}


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

    def values(self, column: str) -> Iterator[Any]:
        """Yields the values of a column, much faster than row by row."""
        for start in range(0, len(self.rows), _COLUMN_BATCH):
            yield from self.rows[column][start : start + _COLUMN_BATCH]

    def texts(self, column: str) -> Iterator[str]:
        """Yields the values of a column as texts; a missing value is the number of its row, like no other."""
        yield from (f"#{n}" if value is None else str(value) for n, value in enumerate(self.values(column)))


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
    ".jsonl": JsonLinesTable,
    ".csv": CsvTable,
    ".tsv": CsvTable,
    ".parquet": ParquetTable,
    ".tar": TarTable,
}
"""The class that reads a file, by its ending."""


def ending_of(name: str) -> str:
    """Returns how a file's name ends, in small letters, as in `KINDS`; the query of a URL is no part of it."""
    return PurePosixPath(without_query(name)).suffix.lower()


def open_table(path: str, name: str) -> Table:
    """Returns the table of a file.

    Args:
        path: of the file on this machine.
        name: what errors call it; its ending says what it is.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is not what its ending says.
    """
    return KINDS[ending_of(name)](path, name)
