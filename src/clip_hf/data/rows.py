"""What a table is: rows, dictionaries of columns, any of which can be read by itself."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import IO, Any, Protocol

NUM_OPEN_FILES = 64
NUM_FIRST_ROWS = 10


class BrokenSampleError(ValueError):
    """A sample cannot be read; the message names it and says why."""


class Table(Protocol):
    """Rows of columns. Reading one that is damaged raises `BrokenSampleError`; all others stay what they are."""

    name: str

    @property
    def column_names(self) -> Sequence[str]:
        """Returns the names of the columns."""

    def __len__(self) -> int:
        """Returns the number of rows."""

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Returns a row, or at least those of the columns named that it has."""


def first_rows(table: Table) -> dict[str, Any]:
    """Returns the columns that most of a table's first whole rows have, each with the first value that is there.

    Raises:
        BrokenSampleError: no row is whole; it is the error of the first.
    """
    rows: list[dict[str, Any]] = []
    problem = None
    for index in range(len(table)):
        try:
            rows.append(table.row(index))
        except BrokenSampleError as error:
            problem = problem or error
        if len(rows) == NUM_FIRST_ROWS:
            break
    if problem is not None and not rows:
        raise problem
    counts = Counter(column for row in rows for column in row)
    values = {column: value for row in reversed(rows) for column, value in row.items() if value is not None}
    return {column: values.get(column) for column, count in counts.items() if 2 * count >= len(rows)}


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Returns what a JSON object holds.

    Raises:
        ValueError: it is none, not in UTF-8, or nested deeper than Python goes.
    """
    try:
        row = json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    if not isinstance(row, dict):
        raise ValueError(f"it is no JSON object but {text[:40]!r}")
    return row


class RandomAccessFile:
    """A file of which pieces are read: of all in a process, only those used last are open, the others open again.

    Args:
        path: of a file on this machine.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self) -> IO[bytes]:
        """Returns the open file, which stays open for as long as it is referred to.

        Raises:
            OSError: it is not there any more.
        """
        return _open(self)


@lru_cache(maxsize=NUM_OPEN_FILES)
def _open(file: RandomAccessFile) -> IO[bytes]:
    return open(file.path, "rb")
