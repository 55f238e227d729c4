"""Images or texts with an id each: what a model is asked to embed."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datasets import Dataset, Image, Value, load_dataset
from PIL import Image as PillowImage

from clip_hf.data.columns import ID_COLUMNS, IMAGE_COLUMNS, TEXT_COLUMNS, USUAL_COLUMNS, Columns, choose_column
from clip_hf.data.files import is_remote

Modality = Literal["image", "text"]

COLUMNS = {"image": IMAGE_COLUMNS, "text": TEXT_COLUMNS}
READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


class Input(NamedTuple):
    """One image or text.

    Args:
        id: unique in its table.
        value: a path, a URL or the bytes of an image, or a text; whatever else the table has is neither.
    """

    id: str
    value: Any


def load_inputs(
    source: str | os.PathLike[str], modality: Modality, columns: Columns = USUAL_COLUMNS, split: str = "train"
) -> Sequence[Input]:
    """Returns all images or texts of a source, in an order that does not change.

    Args:
        source: a folder of images, with or without a metadata.jsonl that has their captions; a .txt file, one text a
            line; a .jsonl, .csv or .parquet file; or the name of a dataset on the Hub.
        modality: what to take from it. An image with several captions gives several texts, `<id>#0`, `<id>#1`, ...
        columns: of a table, where their names are unusual.
        split: of a dataset on the Hub.

    Raises:
        ValueError: the source is empty, lacks a column, or its ids are not unique.
    """
    path = Path(source)
    if path.is_dir():
        inputs = _from_folder(path, modality, columns)
    elif path.suffix == ".txt" and path.is_file():
        if modality == "image":
            raise ValueError(f"{source} holds texts, but images were asked for")
        lines = path.read_text(encoding="utf-8").split("\n")  # texts may hold other ends of lines, such as U+2028
        inputs = [Input(str(number), line) for number, line in enumerate(lines) if line.strip()]
    elif path.suffix in READERS and path.is_file():
        table = load_dataset(READERS[path.suffix], data_files=str(path), split="train")
        inputs = _from_table(str(source), table, modality, columns, path.parent)
    elif path.exists():
        raise ValueError(f"{source} is neither a folder nor one of .txt, {', '.join(READERS)}")
    else:
        inputs = _from_table(str(source), load_dataset(str(source), split=split), modality, columns, None)
    return _checked(str(source), modality, inputs)


def _from_folder(folder: Path, modality: Modality, columns: Columns) -> Sequence[Input]:
    metadata = folder / "metadata.jsonl"
    if metadata.is_file():
        lines = metadata.read_text(encoding="utf-8").split("\n")
        table = Dataset.from_list([json.loads(line) for line in lines if line.strip()])
        return _from_table(str(metadata), table, modality, columns, folder)
    if modality == "text":
        raise ValueError(
            f"{folder} has no metadata.jsonl, and so no texts: give one line for each image, with its text"
        )
    endings = PillowImage.registered_extensions()
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in endings and file.is_file())
    return [Input(file.relative_to(folder).as_posix(), str(file)) for file in files]


def _from_table(
    name: str, table: Dataset, modality: Modality, columns: Columns, folder: Path | None
) -> Sequence[Input]:
    column = choose_column(name, table.column_names, getattr(columns, modality), COLUMNS[modality], modality)
    id_column = columns.id and choose_column(name, table.column_names, columns.id, (), "id")
    id_column = id_column or next((usual for usual in ID_COLUMNS if usual in table.column_names), None)
    ids = [str(value) for value in table[id_column]] if id_column else [str(number) for number in range(len(table))]
    if modality == "image":
        if isinstance(table.features[column], Image):
            table = table.cast_column(column, Image(decode=False))
        return _Images(table, column, ids, folder)
    inputs = []
    for id_, value in zip(ids, table[column], strict=True):
        if isinstance(value, list):
            inputs += [Input(f"{id_}#{number}", text) for number, text in enumerate(value)]
        else:
            inputs.append(Input(id_, value))
    return inputs


def fingerprint_inputs(inputs: Sequence[Input], modality: Modality) -> str:
    """Returns a digest of what is embedded: other texts, or image files that have changed, have another one.

    Args:
        inputs: of `load_inputs`.
        modality: of the inputs. Of image files, size and time of change stand for their contents.
    """
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(inputs, _Images) and not inputs.holds_names:
        digest.update(json.dumps([inputs.table._fingerprint, inputs.ids]).encode())
        return digest.hexdigest()
    for id_, value in inputs:
        if modality == "image" and os.path.isfile(value or ""):
            stat = os.stat(value)
            value = [value, stat.st_size, stat.st_mtime_ns]
        digest.update(json.dumps([id_, value], default=str).encode())
    return digest.hexdigest()


class _Images(Sequence[Input]):
    """Reads the bytes of an image when it is asked for: a table of images may be larger than the memory."""

    def __init__(self, table: Dataset, column: str, ids: list[str], folder: Path | None) -> None:
        self.table, self.column, self.ids, self.folder = table, column, ids, folder
        self.holds_names = table.features[column] == Value("string")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            table = self.table.select(range(*index.indices(len(self))))
            return _Images(table, self.column, self.ids[index], self.folder)
        value = self.table[index][self.column]
        if isinstance(value, dict):  # an Image feature, not decoded
            value = value["bytes"] or value["path"]
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
