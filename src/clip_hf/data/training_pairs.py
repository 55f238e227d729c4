"""Samples in their order of training, each prepared for the model by itself."""

import bisect
import hashlib
import json
import os
import posixpath
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from clip_hf.data.augmentation import Augmentation, training_pixels
from clip_hf.data.files import without_query
from clip_hf.data.loader import BrokenPair, Pair, PairLoader
from clip_hf.data.order import Order, Place, ShuffledOrder, StreamOrder, WeightedOrder
from clip_hf.data.samples import Samples

BROKEN_SAMPLE_ERRORS = (OSError, ValueError, KeyError, EOFError, pa.ArrowException)
"""What damaged data raises; everything else is a mistake of the program and ends it."""


_NUM_CAPTIONS = 16


class TrainingPairs(Dataset):
    """The training set: which sample comes when, and how it is prepared. `loader` makes batches of it.

    Everything depends on the seed and on epoch and position alone: crops, captions and order are the same whatever
    process or worker prepares a sample.

    Args:
        sources: all streams, or none.
        processor: resizes images and encodes captions.
        weights: share of each source, whose samples then have epochs of their own; None for each sample once an epoch.
        augmentation: of the images.
        seed: of order, captions and crops.
        num_lanes: shards of streams that are open at a time in all processes together, best a multiple of the number
            of processes: each then reads its own shards only.
        window: consecutive samples of a stream's shard that are shuffled.
        max_broken_fraction: share of the last 1,000 samples of a source that may be broken, or the run ends.
        broken_list: file to which broken samples are added, a JSON object a line; each of several processes adds its
            rank to the name.

    Raises:
        ValueError: there are no sources, streams and others are mixed, or a number is out of range.
    """

    def __init__(  # noqa: PLR0913, one for each thing that a user decides
        self,
        sources: Sequence[Samples],
        processor: ProcessorMixin,
        *,
        weights: Sequence[float] | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        num_lanes: int = 16,
        window: int = 1024,
        max_broken_fraction: float = 0.1,
        broken_list: str | os.PathLike[str] | None = None,
    ) -> None:
        if len({source.is_stream for source in sources}) != 1:
            raise ValueError("the sources must be at least one, and all of them streams or none")
        if num_lanes < 1 or window < 1:
            raise ValueError(f"num_lanes is {num_lanes} and window {window}, but both must be at least 1")
        self.sources, self.processor, self.seed = list(sources), processor, seed
        self.augmentation = augmentation or Augmentation()
        self._ends = [sum(map(len, sources[: number + 1])) for number in range(len(sources))]
        for source in sources:
            source.max_open = num_lanes + 2
        groups = [[source] for source in sources] if weights else [sources]
        orders = [_order(group, seed, num_lanes, window) for group in groups]
        self.order = WeightedOrder(orders, weights, seed) if weights else orders[0]
        self.weights = weights
        self.max_broken_fraction, self.broken_list = max_broken_fraction, broken_list
        self.fingerprint: dict[str, Any] = {
            "seed": seed,
            "num_samples": [len(source) for source in sources],
            "weights": weights and [weight / sum(weights) for weight in weights],
            "stream": [num_lanes, window] if sources[0].is_stream else None,
            "sources": [_identity(source) for source in sources],
            "augmentation": json.loads(json.dumps(asdict(self.augmentation))),
            "tokenizer": _digest_of_tokenizer(processor.tokenizer),
        }

    @property
    def repositories(self) -> list[str]:
        """The data sets on the Hub among the sources."""
        return list(dict.fromkeys(source.repository for source in self.sources if source.repository is not None))

    @property
    def largest_batch(self) -> int:
        """How many pairs a batch of all processes may have: no source gives it more than it has, by its weight."""
        if self.weights is None:
            return len(self)
        sizes, total = map(len, self.sources), sum(self.weights)
        return min(int(size * total / weight) for size, weight in zip(sizes, self.weights, strict=True))

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self.order)

    def locate(self, epoch: int, position: int) -> tuple[int, int, Place]:
        """Returns the number of the source at a position, the index of the sample in it, and the place as it is.

        Args:
            epoch: number of the epoch.
            position: 0 or more.
        """
        place = self.order(epoch, position)
        number = bisect.bisect_right(self._ends, place.sample)
        return number, place.sample - self._ends[number] + len(self.sources[number]), place

    def prepare(self, epoch: int, position: int) -> Pair | BrokenPair:
        """Returns the sample at a position of the order of all processes.

        Args:
            epoch: number of the epoch.
            position: 0 or more; behind the end of the epoch its samples come again.
        """
        number, index, place = self.locate(epoch, position)
        source = self.sources[number]
        try:
            draw = source.draw(index, self.seed, place.epoch)
            image_processor = self.processor.image_processor
            pixels = training_pixels(draw.image, draw.sample_id, image_processor, self.augmentation, draw.rng)
            input_ids = self.processor.tokenizer(draw.text)["input_ids"]
            image = draw.sample_id if source.ids_name_images else index
            return Pair(number, draw.sample_id, pixels, input_ids, draw.text, image)
        except BROKEN_SAMPLE_ERRORS as error:
            return BrokenPair(number, source.sample_id(index), str(error) or type(error).__name__)

    def loader(self, batch_size: int, **options: Any) -> PairLoader:
        """Returns the batches of one process.

        Args:
            batch_size: pairs in a batch of this process.
            **options: as `PairLoader`.

        Raises:
            ValueError: as `PairLoader`.
        """
        return PairLoader(self, batch_size, **options)


def _identity(source: Samples) -> dict[str, Any]:
    """What tells sources apart, wherever they lie: columns, and a digest of files' names and sizes and of captions."""
    paths = [shard if isinstance(shard, str) else shard.name for shard in source.shards]
    names = [posixpath.basename(without_query(path)) for path in paths]
    captions = []
    for number in range(0, source.shard_sizes[0], max(1, source.shard_sizes[0] // _NUM_CAPTIONS)):
        try:
            captions.append(source.captions_of_row(number))
        except BROKEN_SAMPLE_ERRORS:
            captions.append([])
    return {"columns": list(source.columns), "digest": _digest([names, source.shard_sizes, captions])}


def _digest_of_tokenizer(tokenizer: Any) -> str:
    """What tells tokenizers apart, wherever they lie; merges follow from the order of the vocabulary."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return _digest([vocabulary, tokenizer.model_max_length, getattr(tokenizer, "clean", None)])


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def _order(sources: Sequence[Samples], seed: int, num_lanes: int, window: int) -> Order:
    if sources[0].is_stream:
        sizes = [size for source in sources for size in source.shard_sizes]
        windows = [min(window, source.window or window) for source in sources for _ in source.shard_sizes]
        return StreamOrder(sizes, seed, num_lanes, windows)
    return ShuffledOrder(sum(map(len, sources)), seed)
