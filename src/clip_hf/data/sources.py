"""What one string can name, opened as images with captions: a folder, files of many kinds, a data set on the Hub."""

import glob
import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, Literal, Protocol

import fsspec
from datasets import load_dataset, load_dataset_builder

from clip_hf.data.columns import USUAL_COLUMNS, Columns
from clip_hf.data.files import expand_braces, find_files, is_remote
from clip_hf.data.samples import Samples
from clip_hf.data.shapes import SEEN, UNSEEN, ShapesDataset
from clip_hf.data.tables import KINDS, ParquetTable, RowsTable, ShapesTable

SHAPES = "shapes"
NUM_PICTURES_OF_EACH_SHAPE = 64
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
WHAT_A_SOURCE_IS = (
    f"a folder that holds one of {', '.join(METADATA_FILES)}, or shards; a file, or by {{000..123}} and * several, "
    f"ending in {', '.join(KINDS)}; a data set on the Hub, as name or name:split; or '{SHAPES}'"
)
_HUB_NAME = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?::([\w.\[\]%+-]+))?")


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
    system, path = fsspec.core.url_to_fs(expand_braces(name)[0])
    if system.isdir(path) and _holds_folders_alone(system, path):
        _refuse_splits(name, system, path)
        return Samples(name, [_load_class_folders(name)], columns)
    if system.isdir(path):
        files = _files_of_folder(name, system, path)
    elif (match := _HUB_NAME.fullmatch(name)) and not system.exists(path) and PurePosixPath(name).suffix not in KINDS:
        if split == "evaluation" and match[2] is None:
            raise ValueError(f"{name} is a data set on the Hub: name the split to evaluate, as in {name}:validation")
        samples = _open_hub(name, match[1], match[2] or "train", columns, streaming)
        samples.repository = match[1]
        return samples
    else:
        files = _find_files(name)
    folder = posixpath.dirname(files[0])
    if files[0].endswith(".parquet") and not streaming:
        return Samples(name, [_load_parquet(name, files)], columns, folder)
    return Samples(name, files, columns, folder, streaming)


def _holds_folders_alone(system: fsspec.AbstractFileSystem, path: str) -> bool:
    there = [entry for entry in system.ls(path, detail=True) if not posixpath.basename(entry["name"]).startswith(".")]
    return bool(there) and all(entry["type"] == "directory" for entry in there)


def _refuse_splits(name: str, system: fsspec.AbstractFileSystem, path: str) -> None:
    folders = sorted(posixpath.basename(folder.rstrip("/")) for folder in system.ls(path, detail=False))
    sources = [
        folder
        for folder in folders
        if any(system.exists(posixpath.join(path, folder, file)) for file in METADATA_FILES)
    ]
    if sources:
        raise ValueError(f"{name} holds several sources, {', '.join(sources)}: name one, as in {name}/{sources[0]}")


def _load_class_folders(name: str) -> RowsTable:
    """Returns the images of folders, each named after its class, with a column `label`."""
    files = {"train": posixpath.join(glob.escape(name), "**")}
    try:
        return RowsTable(load_dataset("imagefolder", data_files=files, split="train", drop_labels=False), name)
    except Exception as error:
        raise ValueError(f"{name} has folders alone, but no images in them: {error.__cause__ or error}") from error


def _shapes(split: str) -> ShapesTable:
    if split == "training":
        return ShapesTable(ShapesDataset(SEEN, NUM_PICTURES_OF_EACH_SHAPE * len(SEEN)))
    return ShapesTable(ShapesDataset(UNSEEN, seed=1))


def _files_of_folder(name: str, system: fsspec.AbstractFileSystem, path: str) -> list[str]:
    there = sorted(posixpath.basename(file) for file in system.ls(path, detail=False))
    metadata = [file for file in METADATA_FILES if file in there]
    kinds = {suffix for file in there if (suffix := PurePosixPath(file).suffix) in KINDS}
    if not metadata and len(kinds) != 1:
        what = f"shards of several kinds, {', '.join(sorted(kinds))}" if kinds else "neither metadata nor shards"
        raise ValueError(f"the folder {name} holds {what}: {_list(there)}. A source is {WHAT_A_SOURCE_IS}")
    files = metadata[:1] or [file for file in there if PurePosixPath(file).suffix in kinds]
    return [posixpath.join(name, file) for file in files]


def _find_files(name: str) -> list[str]:
    try:
        files = find_files(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is not to be found: {error}. A source is {WHAT_A_SOURCE_IS}") from error
    endings = {PurePosixPath(file).suffix for file in files}
    if len(endings) > 1 or not endings <= KINDS.keys():
        raise ValueError(f"{name} ends in {', '.join(sorted(endings))}. A source is {WHAT_A_SOURCE_IS}")
    return files


def _list(names: Sequence[str], most: int = 12) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + rest


def _load_parquet(name: str, files: Sequence[str]) -> RowsTable:
    for file in files:
        if not is_remote(file):
            ParquetTable(file, file)  # names a damaged file, as `datasets` does not
    try:
        return RowsTable(load_dataset("parquet", data_files=list(files), split="train"), name)
    except Exception as error:
        raise ValueError(f"{name}: {error.__cause__ or error}") from error


def _open_hub(name: str, repository: str, split: str, columns: Columns, streaming: bool) -> Samples:
    try:
        if not streaming:
            return Samples(name, [RowsTable(load_dataset(repository, split=split), name)], columns)
        files = load_dataset_builder(repository).config.data_files[split]
    except Exception as error:  # the Hub's client has a dozen: no network, no such data set, no such split
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{name} is neither here nor a data set on the Hub ({reason}). A source is {WHAT_A_SOURCE_IS}"
        ) from error
    endings = {PurePosixPath(file).suffix for file in files}
    if len(endings) > 1 or not endings <= KINDS.keys():
        raise ValueError(f"{name} has files of {_list(sorted(endings))}, but a stream reads one of {', '.join(KINDS)}")
    return Samples(name, files, columns, is_stream=True)


def captions_of(example: dict[str, Any]) -> list[str]:
    """Returns all captions of an example."""
    return example["captions"] if "captions" in example else [example["text"]]
