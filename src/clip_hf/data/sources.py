"""What one string can name, opened as images with captions: a folder, files of many kinds, a data set on the Hub."""

import glob
import os
import posixpath
import re
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from datasets import load_dataset, load_dataset_builder

from clip_hf.data.columns import USUAL_COLUMNS, Columns
from clip_hf.data.files import file_system, find_files, is_remote, without_query
from clip_hf.data.samples import Samples
from clip_hf.data.shapes import SEEN, UNSEEN, ShapesDataset
from clip_hf.data.tables import KINDS, ParquetTable, RowsTable, ShapesTable, ending_of

SHAPES = "shapes"
NUM_PICTURES_OF_EACH_SHAPE = 64
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
WHAT_A_SOURCE_IS = (
    f"a folder that holds one of {', '.join(METADATA_FILES)}, or shards; a file, or by {{000..123}} and * several, "
    f"ending in {', '.join(KINDS)}; a data set on the Hub, as name, name:split or "
    f"name:configuration:split; or '{SHAPES}'"
)
_HUB_NAME = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?::([\w.-]+)(?=:))?(?::([\w.\[\]:%+-]+))?")


class Examples(Protocol):
    """A sequence of examples: "image", an image in any form that the processor takes, and "captions" or "text"."""

    def __len__(self) -> int:
        """Returns the number of examples."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example."""


def open_source(
    source: str | os.PathLike[str],
    columns: Columns = USUAL_COLUMNS,
    *,
    split: Literal["training", "evaluation"] = "training",
    streaming: bool = False,
) -> Samples:
    """Returns the samples of a source, every file of it opened once.

    Args:
        source: see `WHAT_A_SOURCE_IS`; on this machine or, as a URL, wherever fsspec reaches.
        columns: of images, captions and ids, where their names are unusual.
        split: of the shapes: evaluation has other combinations than training.
        streaming: read shard by shard, whatever their number, in place of any sample at any time.

    Raises:
        ValueError: there is no such source, a file of it cannot be read, it is empty, or it lacks a column.
    """
    name = os.fspath(source)
    if name == SHAPES:
        return Samples(name, [_shapes(split)])
    match = _HUB_NAME.fullmatch(name) if ending_of(name) not in KINDS else None
    try:
        paths = find_files(os.path.expanduser(name))
    except (OSError, ValueError) as error:
        if match is None:
            raise ValueError(f"{name} is not to be found: {error}. A source is {WHAT_A_SOURCE_IS}") from error
        paths = []
    if match is not None and not paths:
        if split == "evaluation" and match[3] is None:
            raise ValueError(f"{name} is a data set on the Hub: name the split to evaluate, as in {name}:validation")
        samples = _open_hub(name, match, columns, streaming)
        samples.repository = match[1]
        return samples
    if _is_folder(paths[0]):
        if len(paths) == 1 and _holds_folders_alone(paths[0]):
            _refuse_splits(name, paths[0])
            return Samples(name, [_load_class_folders(name, paths[0], streaming)], columns)
        paths = [file for path in paths for file in _files_of_folder(path)]
    _check_kind(name, paths)
    name = without_query(name)  # which names samples, and would with another signature name others
    folders = {posixpath.dirname(without_query(file)) for file in paths}
    if ending_of(paths[0]) == ".parquet" and not streaming:
        return Samples(name, [load_parquet(name, paths)], columns, posixpath.dirname(without_query(paths[0])))
    return Samples(name, paths, columns, folders.pop() if len(folders) == 1 else None, streaming)


def _is_folder(path: str) -> bool:
    if is_remote(path) and ending_of(path) in KINDS:
        return False  # a web server would be asked for the whole file
    system, place = file_system(path)
    return system.isdir(place)


def _holds_folders_alone(path: str) -> bool:
    system, place = file_system(path)
    there = [entry for entry in system.ls(place, detail=True) if not posixpath.basename(entry["name"]).startswith(".")]
    return bool(there) and all(entry["type"] == "directory" for entry in there)


def _refuse_splits(name: str, path: str) -> None:
    sources = [
        folder
        for folder in _names_in(path)
        if any(file.lower() in METADATA_FILES for file in _names_in(posixpath.join(path, folder)))
    ]
    if sources:
        raise ValueError(f"{name} holds several sources, {', '.join(sources)}: name one, as in {name}/{sources[0]}")


def _names_in(path: str) -> list[str]:
    system, place = file_system(path)
    return sorted(posixpath.basename(file.rstrip("/")) for file in system.ls(place, detail=False))


def _load_class_folders(name: str, path: str, streaming: bool) -> RowsTable:
    """Returns the images of folders, each named after its class, with a column `label`."""
    if streaming:
        raise ValueError(f"{name} has folders of images, not shards, and is no stream: leave out --streaming")
    files = {"train": posixpath.join(glob.escape(path), "**")}
    try:
        return RowsTable(load_dataset("imagefolder", data_files=files, split="train", drop_labels=False), name)
    except Exception as error:
        raise ValueError(f"{name} has folders alone, but no images in them: {error.__cause__ or error}") from error


def _shapes(split: str) -> ShapesTable:
    if split == "training":
        return ShapesTable(ShapesDataset(SEEN, NUM_PICTURES_OF_EACH_SHAPE * len(SEEN)))
    return ShapesTable(ShapesDataset(UNSEEN, seed=1))


def _files_of_folder(path: str) -> list[str]:
    there = _names_in(path)
    metadata = sorted(
        (file for file in there if file.lower() in METADATA_FILES), key=lambda file: METADATA_FILES.index(file.lower())
    )
    kinds = {ending_of(file) for file in there} & KINDS.keys()
    if not metadata and len(kinds) != 1:
        what = f"shards of several kinds, {', '.join(sorted(kinds))}" if kinds else "neither metadata nor shards"
        raise ValueError(f"the folder {path} holds {what}: {_list(there)}. A source is {WHAT_A_SOURCE_IS}")
    files = metadata[:1] or [file for file in there if ending_of(file) in kinds]
    return [posixpath.join(path, file) for file in files]


def _check_kind(name: str, files: Sequence[str]) -> None:
    endings = {ending_of(file) for file in files}
    if len(endings) > 1 or not endings <= KINDS.keys():
        raise ValueError(f"{name} ends in {', '.join(sorted(endings))}. A source is {WHAT_A_SOURCE_IS}")


def _list(names: Sequence[str], most: int = 12) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + rest


def load_parquet(name: str, files: Sequence[str]) -> RowsTable:
    """Returns Parquet files as one table.

    Args:
        name: what errors call it.
        files: paths or URLs.

    Raises:
        ValueError: a file is damaged, or has other columns than the first.
    """
    # `datasets` names neither a damaged file nor one that has other columns.
    tables = [ParquetTable(file, file) for file in files if not is_remote(file)]
    for table in tables:
        if set(table.column_names) != set(tables[0].column_names):
            raise ValueError(
                f"{table.name} has the columns {', '.join(table.column_names)}, but {tables[0].name} "
                f"{', '.join(tables[0].column_names)}: --streaming reads each for itself"
            )
    try:
        escaped = [file if is_remote(file) else glob.escape(file) for file in files]
        return RowsTable(load_dataset("parquet", data_files=escaped, split="train"), name)
    except Exception as error:
        raise ValueError(f"{name}: {error.__cause__ or error}") from error


def _open_hub(name: str, match: re.Match[str], columns: Columns, streaming: bool) -> Samples:
    repository, configuration, split = match[1], match[2], match[3] or "train"
    try:
        builder = load_dataset_builder(repository, configuration)
    except Exception as error:  # the Hub's client has a dozen: no network, no such data set, no such configuration
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{name} is not here, and the Hub has no such data set ({reason}). A source is {WHAT_A_SOURCE_IS}"
        ) from error
    shards = builder.config.data_files or {}
    if not streaming and {ending_of(file) for files in shards.values() for file in files} != {".tar"}:
        try:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=split)
        except Exception as error:
            raise ValueError(f"{name}: {error.__cause__ or error}") from error
        return Samples(name, [RowsTable(rows, name)], columns)
    if split not in shards:
        raise ValueError(
            f"{name} has no split '{split}' that is read by its files, but {', '.join(map(str, shards)) or 'none'}"
        )
    _check_kind(f"{name}, which is read by its files,", shards[split])
    return Samples(name, shards[split], columns, None, streaming)


def captions_of(example: dict[str, Any]) -> list[str]:
    """Returns all captions of an example."""
    return example["captions"] if "captions" in example else [example["text"]]
