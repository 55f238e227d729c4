"""Images or texts with an id each: what a model is asked to embed."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datasets import Value, load_dataset
from PIL import Image as PillowImage

from clip_hf.data.columns import ID_COLUMNS, IMAGE_COLUMNS, TEXT_COLUMNS, USUAL_COLUMNS, Columns, choose_column
from clip_hf.data.files import is_remote
from clip_hf.data.rows import BrokenSampleError, Table
from clip_hf.data.sources import METADATA_FILES, load_parquet
from clip_hf.data.tables import RowsTable, ending_of, open_table

Modality = Literal["image", "text"]

COLUMNS = {"image": IMAGE_COLUMNS, "text": TEXT_COLUMNS}
TABLES = (".jsonl", ".csv", ".tsv", ".parquet")


class Input(NamedTuple):
    """One image or text.

    Args:
        id: unique in its table.
        value: a path, a URL or the bytes of an image, or a text; whatever else the table has is neither, nor is the
            error that says why its row cannot be read.
    """

    id: str
    value: Any


def load_inputs(
    source: str | os.PathLike[str], modality: Modality, columns: Columns = USUAL_COLUMNS, split: str = "train"
) -> Sequence[Input]:
    """Returns all images or texts of a source, in an order that does not change.

    Args:
        source: a folder of images, with or without metadata that has their captions; a .txt file, one text a line; a
            .jsonl, .csv, .tsv or .parquet file; or the name of a dataset on the Hub.
        modality: what to take from it. An image with several captions gives several texts, `<id>#0`, `<id>#1`, ...
        columns: of a table, where their names are unusual. A row without an id has its number, `#0`, `#1`, ...
        split: of a dataset on the Hub.

    Raises:
        ValueError: the source is empty, cannot be read, lacks a column, or its ids are not unique.
    """
    path = Path(source)
    table: Table
    inputs: Sequence[Input]
    if (file := table_file(path)) is not None:
        is_parquet, name = ending_of(file.name) == ".parquet", str(file)
        table = load_parquet(name, [name]) if is_parquet else open_table(name, name)
        inputs = _from_table(table, modality, columns, file.parent)
    elif path.is_dir():
        inputs = _from_folder(path, modality)
    elif path.suffix == ".txt" and path.is_file():
        if modality == "image":
            raise ValueError(f"{source} holds texts, but images were asked for")
        inputs = [Input(str(number), line) for number, line in enumerate(read_lines(path)) if line.strip()]
    elif path.exists():
        raise ValueError(f"{source} is neither a folder nor one of .txt, {', '.join(TABLES)}")
    else:
        table = RowsTable(load_dataset(str(source), split=split), str(source))
        inputs = _from_table(table, modality, columns, None)
    return _checked(str(source), modality, inputs)


def table_file(path: Path) -> Path | None:
    """Returns the file that has the rows of a folder or is itself a table, None if there is none."""
    files = [path / name for name in METADATA_FILES] if path.is_dir() else [path] * (ending_of(str(path)) in TABLES)
    return next((file for file in files if file.is_file()), None)


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text file, which may hold other ends of lines, such as U+2028.

    Raises:
        ValueError: it is not in UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            yield from (line.removesuffix("\n").removesuffix("\r") for line in lines)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error


def _from_folder(folder: Path, modality: Modality) -> Sequence[Input]:
    if modality == "text":
        raise ValueError(
            f"{folder} has no metadata.jsonl, and so no texts: give one line for each image, with its text"
        )
    endings = PillowImage.registered_extensions()
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in endings and file.is_file())
    return [Input(file.relative_to(folder).as_posix(), str(file)) for file in files]


def _from_table(table: Table, modality: Modality, columns: Columns, folder: Path | None) -> Sequence[Input]:
    name, available = table.name, table.column_names
    column = choose_column(name, available, getattr(columns, modality), COLUMNS[modality], modality)
    id_column = columns.id and choose_column(name, available, columns.id, (), "id")
    id_column = id_column or next((usual for usual in ID_COLUMNS if usual in available), None)
    places = range(len(table))
    ids = list(map(str, places)) if id_column is None else _read_ids(table, id_column)
    if modality == "image":
        return _Images(table, column, ids, places, folder)
    inputs = []
    for id_, value in zip(ids, read_column(table, column), strict=True):
        if isinstance(value, list):
            inputs += [Input(f"{id_}#{number}", text) for number, text in enumerate(value)]
        else:
            inputs.append(Input(id_, value))
    return inputs


def _read_ids(table: Table, column: str) -> list[str]:
    values = enumerate(read_column(table, column))
    return [f"#{n}" if value is None or isinstance(value, BrokenSampleError) else str(value) for n, value in values]


def read_column(table: Table, column: str) -> Iterator[Any]:
    """Yields what each row has in a column, None if there is nothing, or the error that says why it cannot be read."""
    if isinstance(table, RowsTable):
        return table.values(column)
    return (_read_value(table, place, column) for place in range(len(table)))


def _read_value(table: Table, place: int, column: str) -> Any:
    try:
        return table.row(place, [column]).get(column)
    except BrokenSampleError as error:
        return error


def fingerprint_inputs(inputs: Sequence[Input], modality: Modality) -> str:
    """Returns a digest of what is embedded: other texts, or image files that have changed, have another one.

    Args:
        inputs: of `load_inputs`.
        modality: of the inputs. Of image files, size and time of change stand for their contents.
    """
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(inputs, _Images) and inputs.contents is not None:
        digest.update(json.dumps([inputs.contents, inputs.ids]).encode())
        return digest.hexdigest()
    for id_, value in inputs:
        if modality == "image" and isinstance(value, str) and os.path.isfile(value):
            stat = os.stat(value)
            value = [value, stat.st_size, stat.st_mtime_ns]
        digest.update(json.dumps([id_, value], default=str).encode())
    return digest.hexdigest()


class _Images(Sequence[Input]):
    """Reads the bytes of an image when it is asked for: a table of images may be larger than the memory."""

    def __init__(self, table: Table, column: str, ids: list[str], places: range, folder: Path | None) -> None:
        self.table, self.column, self.ids, self.places, self.folder = table, column, ids, places, folder

    @property
    def contents(self) -> str | None:
        """What stands for the images that a table holds, None where it names their files."""
        if isinstance(self.table, RowsTable) and self.table.rows.features[self.column] != Value("string"):
            return self.table.rows._fingerprint
        return None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Images(self.table, self.column, self.ids[index], self.places[index], self.folder)
        value = _read_value(self.table, self.places[index], self.column)
        if isinstance(value, dict):  # an Image feature, not decoded
            value = value.get("bytes") or value.get("path")
        elif isinstance(value, str) and self.folder is not None and not is_remote(value):
            value = str(self.folder / value)
        return Input(self.ids[index], value)


def _checked(source: str, modality: Modality, inputs: Sequence[Input]) -> Sequence[Input]:
    if not len(inputs):
        raise ValueError(f"{source} holds no {modality}s")
    ids = inputs.ids if isinstance(inputs, _Images) else [one.id for one in inputs]
    if len(set(ids)) < len(ids):
        twice = next(id_ for id_, number in Counter(ids).items() if number > 1)
        raise ValueError(f"{source} has the id '{twice}' more than once: name a column of unique ids")
    return inputs
