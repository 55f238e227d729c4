"""Images with their captions, from one file or many, read one by one."""

import bisect
import itertools
import math
import posixpath
import random
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple
from weakref import WeakSet

from PIL.Image import Image as PillowImage
from transformers.utils import logging

from clip_hf.data.columns import TEXT_COLUMNS, USUAL_COLUMNS, Columns, choose_columns
from clip_hf.data.files import NUM_KEPT_COPIES, is_remote, local_copy, read_bytes, without_query
from clip_hf.data.image_groups import ImageGroups
from clip_hf.data.rows import BrokenSampleError, Table, first_rows
from clip_hf.data.shard_sizes import SIZES_FILE, parquet_footer, read_sizes
from clip_hf.data.tables import ParquetTable, RowsTable, ending_of, open_table

logger = logging.get_logger(__name__)

NUM_TOKENIZER_CAPTIONS = 250_000
"""Captions that a tokenizer learns from: more change little, and a stream would be read to its end first."""


SECONDS_TO_ANOTHER_ATTEMPT = 300
"""After a shard could not be opened: each of its samples would else wait for all attempts to read it."""


class Draw(NamedTuple):
    """An image with one of its captions.

    Args:
        sample_id: names the image.
        image: bytes of a file, or PIL image.
        text: the caption.
        rng: the caption was drawn with it; crops are to be.
    """

    sample_id: str
    image: Any
    text: str
    rng: random.Random


class Samples:
    """Images with their captions, from one file or many.

    Its samples are images. Rows that name the same image are one sample with several captions; in a stream, whose rows
    are not known beforehand, each row is a sample.

    Args:
        name: what errors call it.
        shards: files of one kind, or one table.
        columns: of the tables, None for the usual ones.
        folder: where relative paths of images begin; None where each begins in the folder of its shard.
        is_stream: keep few shards open, and do not look at all rows beforehand.

    Attributes:
        window: rows of a shard that a stream may read in any order at little cost, None for any number.

    Raises:
        ValueError: a shard cannot be read, a column is missing, or there are no rows.
    """

    repository: str | None = None  # on the Hub, where a data set comes from there
    _living: ClassVar["WeakSet[Samples]"] = WeakSet()
    max_open = 32  # shards of a stream: with its lanes and those just finished, far fewer than a process may open

    def __init__(
        self,
        name: str,
        shards: Sequence[str | Table],
        columns: Columns = USUAL_COLUMNS,
        folder: str | None = "",
        is_stream: bool = False,
    ) -> None:
        self.name, self.shards, self.folder, self.is_stream = name, list(shards), folder, is_stream
        self._tables: OrderedDict[int, Table] = OrderedDict()
        self._failures: dict[int, tuple[Exception, float]] = {}
        self.columns, self._is_chosen = columns, False
        self._living.add(self)
        self._known_sizes = read_sizes(name, [str(shard) for shard in shards]) if is_stream else {}
        self.shard_sizes = [self._measure(number) for number in range(len(self.shards))]
        self._ends = list(itertools.accumulate(self.shard_sizes))
        if not self._ends or self._ends[-1] == 0:
            raise ValueError(f"{name} holds no samples: it has {len(self.shards)} files, all without rows")
        table = self._table(bisect.bisect_right(self._ends, 0)) if is_stream else None  # the first that has rows
        self.window = table.window if isinstance(table, ParquetTable) else None
        self._groups = None if is_stream else self._find_groups()

    def __len__(self) -> int:
        return self._ends[-1] if self._groups is None else len(self._groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns an example: "sample_id", "image", and "captions", all there are.

        Raises:
            BrokenSampleError: the row is damaged.
        """
        rows = self._rows_of(index)
        row = self._row(rows[0])
        captions = self._captions(row, rows[0]) + [text for other in rows[1:] for text in self.captions_of_row(other)]
        image = self._image(row, rows[0])
        if isinstance(image, str) and is_remote(image):
            image = read_bytes(image)
        return {"sample_id": self._id(row, rows[0]), "image": image, "captions": captions}

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be sent to another process, which opens its own.
        tables = {number: table for number, table in self._tables.items() if isinstance(table, RowsTable)}
        return self.__dict__ | {"_tables": OrderedDict(tables), "_failures": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._living.add(self)

    def draw(self, index: int, seed: int, epoch: int) -> Draw:
        """Returns a sample with one of its captions, which depends on seed, epoch and the sample's id.

        Args:
            index: of the sample.
            seed: of the run.
            epoch: number of the epoch.

        Raises:
            BrokenSampleError: the row is damaged, or has no image or no caption.
            OSError: the file of the image could not be read.
        """
        rows = self._rows_of(index)
        row = self._row(rows[0]) if len(rows) == 1 else self._row(rows[0], [self.columns.id or ""])
        sample_id = self._id(row, rows[0])
        rng = random.Random(f"{seed} {epoch} {sample_id}".encode(errors="surrogatepass"))  # names may be no UTF-8
        number = rows[0]
        if len(rows) > 1:
            row = self._row(number := rng.choice(rows))
        captions = self._captions(row, number)
        if not captions and (others := [other for other in rows if self._has_captions(other)]):
            row = self._row(number := rng.choice(others))
            captions = self._captions(row, number)
        if not captions:
            raise BrokenSampleError(f"{sample_id}: the caption is empty")
        # Drawn from only where there is a choice: five rows of one caption are then the same as one row of five.
        text = rng.choice(captions) if len(captions) > 1 else captions[0]
        image = self._image(row, number)
        # Read at once: Pillow would ask for the file in dozens of pieces.
        return Draw(sample_id, read_bytes(image) if isinstance(image, str) else image, text, rng)

    @property
    def ids_name_images(self) -> bool:
        """Whether rows of equal ids are captions of one image: the key of a tar file is its own in that file alone."""
        is_tar = ending_of(str(self.shards[0])) == ".tar"
        return self.columns.id is not None and not (is_tar and self.columns.id == "key")

    def sample_id(self, index: int) -> str:
        """Returns what names a sample, damaged or not: the id of its image, or else its place in the source."""
        return self._id_of_row(self._rows_of(index)[0])

    def captions_of_row(self, number: int) -> list[str]:
        """Returns the captions of a row, its image left alone."""
        return self._captions(self._row(number, [self.columns.text or ""]), number)

    def _has_captions(self, number: int) -> bool:
        try:
            return bool(self.captions_of_row(number))
        except BrokenSampleError:
            return False

    def all_captions(self) -> Iterable[list[str]]:
        """Yields the captions of each row that has any; damaged rows are left out."""
        for number in range(self._ends[-1]):
            try:
                captions = self.captions_of_row(number)
            except BrokenSampleError:
                continue
            if captions:
                yield captions

    # Rows

    def _measure(self, number: int) -> int:
        """Checks a shard's columns and returns its number of rows, reading no more of it than that takes."""
        shard = str(self.shards[number])
        if self._is_chosen and shard in self._known_sizes:
            return self._known_sizes[shard]
        if self._is_chosen and is_remote(shard) and ending_of(shard) == ".parquet":
            num_rows, names = parquet_footer(shard)
            choose_columns(shard, names, self.columns, {})
            return num_rows
        table = self._table(number)
        size = self._known_sizes.get(shard, len(table))
        if size != len(table):
            raise ValueError(f"{shard} has {len(table):,} samples, but {size:,} in {SIZES_FILE}: correct or delete it")
        if len(table):
            rows = {} if self._is_chosen else first_rows(table)
            columns = choose_columns(table.name, table.column_names, self.columns, rows)
            self.columns, self._is_chosen = self.columns if self._is_chosen else columns, True
        return len(table)

    def _table(self, number: int) -> Table:
        if number not in self._tables:
            error, until = self._failures.get(number, (None, 0.0))
            shard = self.shards[number]
            if error is None or time.monotonic() > until:
                try:
                    self._tables[number] = self._open(shard) if isinstance(shard, str) else shard
                    error = None
                except (OSError, ValueError) as problem:
                    error = problem
                    self._failures[number] = error, time.monotonic() + SECONDS_TO_ANOTHER_ATTEMPT
            if error is not None:
                raise BrokenSampleError(str(error)) from error
            while self.is_stream and len(self._tables) > self.max_open:
                self._tables.popitem(last=False)
        self._tables.move_to_end(number)
        return self._tables[number]

    def _open(self, shard: str) -> Table:
        # What all sources, and workers of this machine, have open must stay: each would fetch what another pushed out.
        num_open = sum(2 * one.max_open if one.is_stream else len(one.shards) for one in self._living)
        return open_table(local_copy(shard, max(NUM_KEPT_COPIES, num_open)), shard)

    def _row(self, number: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        shard = bisect.bisect_right(self._ends, number)
        table, size = self._table(shard), self.shard_sizes[shard]
        if len(table) > size:
            logger.warning_once(f"{table.name} has {len(table):,} samples, of which the first {size:,} are read")
        place = number - self._ends[shard] + size
        if place >= len(table):
            raise BrokenSampleError(f"{self.shards[shard]} has changed: it had {size:,} rows")
        if self.is_stream and isinstance(table, ParquetTable):
            share = size * self.max_open / self._ends[-1]  # lanes that are in this shard at a time
            table.num_lanes = math.ceil(share) + (share > 1)
        wanted = columns or [column for column in self.columns if column is not None]
        try:
            row = table.row(place, wanted)
        except FileNotFoundError:  # a copy of a remote file, which went to make room for another
            del self._tables[shard]
            row = self._table(shard).row(place, wanted)
        spared = {self.columns.id} - {self.columns.image, self.columns.text}
        missing = [column for column in wanted if column not in row and column not in spared]
        if missing:
            raise BrokenSampleError(f"{table.name}, row {place}: it has no {', '.join(missing)}")
        path = row.get(self.columns.image or "")
        if self.folder is None and isinstance(path, str) and not is_remote(path):
            row[self.columns.image or ""] = posixpath.join(posixpath.dirname(without_query(table.name)), path)
        return row

    def _rows_of(self, index: int) -> Sequence[int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in [0, {len(self)})")
        return [index] if self._groups is None else self._groups[index]

    def _find_groups(self) -> ImageGroups | None:
        column = self.columns.id
        if column is None or not self.ids_name_images:
            return None
        table = self.shards[0]
        if isinstance(table, RowsTable):  # much faster than row by row
            return ImageGroups.find(table.texts(column))
        return ImageGroups.find(self._id_of_row(number) for number in range(self._ends[-1]))

    def _id_of_row(self, number: int) -> str:
        if self.columns.id is None:
            return f"{self.name}#{number}"
        try:
            return self._id(self._row(number, [self.columns.id]), number)
        except BrokenSampleError:
            return f"{self.name}#{number}"

    def _id(self, row: dict[str, Any], number: int) -> str:
        value = row.get(self.columns.id) if self.columns.id else None
        if value is None and isinstance(image := row.get(self.columns.image or ""), dict):
            value = image.get("path")
        return f"{self.name}#{number}" if value is None else str(value)

    def _image(self, row: dict[str, Any], number: int) -> Any:
        image = row[self.columns.image or ""]
        if isinstance(image, dict):  # an Image feature, not decoded
            image = image.get("bytes") or image.get("path")
        if not isinstance(image, bytes | str | PillowImage) or not image:
            raise BrokenSampleError(f"{self._id(row, number)}: there is no image, but {image!r:.60}")
        if isinstance(image, str) and not is_remote(image) and self.folder:
            image = posixpath.join(self.folder, image)
        return image

    def _captions(self, row: dict[str, Any], number: int) -> list[str]:
        texts = row[self.columns.text or ""]
        if isinstance(texts, int) and (self.columns.text or "").lower() not in TEXT_COLUMNS:
            texts = str(texts)  # a class, in a column named by the user
        texts = [texts] if isinstance(texts, str) else [] if texts is None else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise BrokenSampleError(
                f"{self._id(row, number)}: the caption is {texts!r:.60}, not a text or a list of them"
            )
        return [text for text in texts if text.strip()]


def captions_for_tokenizer(sources: Sequence[Samples], most: int = NUM_TOKENIZER_CAPTIONS) -> Iterator[list[str]]:
    """Yields the first captions of each source, and says so where they are not all.

    Args:
        sources: each gives an equal part.
        most: about how many captions to give, of all sources together.
    """
    for source in sources:
        number = 0
        for texts in source.all_captions():
            yield texts
            number += len(texts)
            if number * len(sources) >= most:
                logger.warning(
                    f"{source.name}: the tokenizer learns from the first {number:,} captions; for another, run "
                    "scripts/train_tokenizer.py and give its folder as --tokenizer"
                )
                break
