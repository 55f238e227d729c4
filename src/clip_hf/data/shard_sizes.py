"""How many rows remote shards have, found without reading them where that is possible."""

import json
import posixpath
from collections.abc import Sequence

import fsspec
import pyarrow.parquet as pq
from transformers.utils import logging

from clip_hf.data.files import is_remote, read_bytes, with_retries, without_query

logger = logging.get_logger(__name__)

SIZES_FILE = "sizes.json"


def read_sizes(name: str, files: Sequence[str]) -> dict[str, int]:
    """Returns what a `sizes.json` beside the shards, `{"000.tar": 10000, ...}`, says of them; nothing without one.

    Args:
        name: of the source.
        files: its shards.

    Raises:
        ValueError: the file is not of this form, or does not name all shards.
    """
    bare = {file: without_query(file) for file in files}
    path = posixpath.join(posixpath.dirname(bare[files[0]]), SIZES_FILE)
    try:
        listed = json.loads(read_bytes(path))
    except OSError:
        if is_remote(path) and len(files) > 1 and not bare[files[0]].lower().endswith(".parquet"):
            logger.warning(
                f"{name}: {len(files):,} remote shards are read once to count their samples. A {path}, "
                '{"name of a shard": its number of samples, ...}, would save that'
            )
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    names = {file: posixpath.basename(path) for file, path in bare.items()}
    missing = [file for file in names.values() if not isinstance(listed, dict) or type(listed.get(file)) is not int]
    if missing:
        raise ValueError(f"{path} gives no number of samples for {missing[0]}: complete the file, or delete it")
    return {file: listed[base] for file, base in names.items()}


def parquet_footer(path: str) -> tuple[int, list[str]]:
    """Returns the number of rows and the columns of a remote Parquet file, of which only the end is read.

    Args:
        path: a URL.

    Raises:
        OSError: the file could not be read.
    """

    def read() -> tuple[int, list[str]]:
        with fsspec.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            return parquet.metadata.num_rows, parquet.schema_arrow.names

    return with_retries(path, read)
