"""Tables that are lines of text: JSON objects, and CSV with a header."""

import csv
import io
import os
from array import array
from collections.abc import Iterator, Sequence
from typing import IO, Any

from clip_hf.data.rows import BrokenSampleError, RandomAccessFile, first_rows, parse_object


class _TextTable:
    def __init__(self, path: str, name: str) -> None:
        self.name = name
        self._file = RandomAccessFile(path)
        self._starts = array("q")
        with open(path, "rb") as file:
            self._index(file)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Returns a row.

        Raises:
            BrokenSampleError: the line is damaged.
        """
        start, end = self._starts[index], self._starts[index + 1]
        file = self._file.open()
        line = os.pread(file.fileno(), end - start, start)
        try:
            return self._parse(line.decode())
        except (ValueError, csv.Error) as error:
            raise BrokenSampleError(f"{self.name}, row {index}: {error}") from error

    def _index(self, file: IO[bytes]) -> None:
        """Finds where each row starts, and behind them where the last ends."""
        raise NotImplementedError

    def _parse(self, line: str) -> dict[str, Any]:
        raise NotImplementedError


class JsonLinesTable(_TextTable):
    """A JSON object a line.

    Args:
        path: of a file on this machine.
        name: what errors call it.

    Raises:
        ValueError: no line is a JSON object.
    """

    def __init__(self, path: str, name: str) -> None:
        super().__init__(path, name)
        try:
            self.column_names = list(first_rows(self))
        except BrokenSampleError as error:
            raise ValueError(f"{name} has no JSON object in any line: {error}") from error
        if not self.column_names:
            raise ValueError(f"{name} has no JSON object in any line: it is empty")

    def _index(self, file: IO[bytes]) -> None:
        position = 0
        for line in file:
            if line.strip():
                self._starts.append(position)
            position += len(line)
        self._starts.append(position)

    def _parse(self, line: str) -> dict[str, Any]:
        return parse_object(line.split("\n", 1)[0].removeprefix("\ufeff"))


class CsvTable(_TextTable):
    """A header and rows of fields, divided by commas, semicolons or tabs, whichever the header has most of.

    Args:
        path: of a file on this machine.
        name: what errors call it.

    Raises:
        ValueError: it does not begin with a line in UTF-8.
    """

    def _index(self, file: IO[bytes]) -> None:
        try:
            header = file.readline().decode("utf-8-sig")
            if "\r" in header.rstrip("\r\n"):
                raise ValueError("its lines end in carriage returns alone; save it with line feeds")
            delimiter = max(",\t;", key=header.count)
            fields = next(csv.reader([header], delimiter=delimiter), [])
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{self.name} is not CSV in UTF-8: {error}") from error
        has_spaces = any(field.startswith(" ") for field in fields[1:])
        self._format: dict[str, Any] = {"delimiter": delimiter, "skipinitialspace": has_spaces, "strict": True}
        self.column_names = [field.strip() for field in fields]
        self._starts.append(file.tell())
        while self._index_rows(file):
            # A quote that is not closed would take in the rows behind it; so its own line alone is a broken row.
            file.seek(self._starts[-1])
            file.readline()
            self._starts.append(file.tell())

    def _index_rows(self, file: IO[bytes]) -> bool:
        """Finds the rows from the last start on; returns whether one ends them before the file does."""
        position = self._starts[-1]

        def lines() -> Iterator[str]:
            nonlocal position
            for line in file:
                position += len(line)
                yield line.decode(errors="surrogateescape")

        try:
            for fields in csv.reader(lines(), **self._format):
                if fields:
                    self._starts.append(position)
                else:
                    self._starts[-1] = position
        except csv.Error:
            return True
        return False

    def _parse(self, line: str) -> dict[str, Any]:
        try:
            fields = next(csv.reader(io.StringIO(line, newline=""), **self._format))
        except csv.Error as error:
            raise ValueError(f"{error}; is a quote opened and not closed in {line.strip()[:60]!r}?") from error
        if len(fields) != len(self.column_names):
            raise ValueError(f"it has {len(fields)} fields, the header {len(self.column_names)}")
        return dict(zip(self.column_names, fields, strict=True))
