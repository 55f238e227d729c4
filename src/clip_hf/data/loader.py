"""The batches of one process, with a place in the data that can be saved and entered.

Workers prepare single samples, in small groups; this process puts batches together in order, and takes the next of its
own share where one is broken. All that tells where a run is are therefore an epoch and a number of positions read,
whatever the workers have prepared ahead.

Shapes: B batch, S image size in pixels, L tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from clip_hf.data.broken_samples import BrokenSamples, TooManyBrokenSamplesError
from clip_hf.data.image_groups import ImageKey, find_twins
from clip_hf.data.order import Share

if TYPE_CHECKING:
    from clip_hf.data.training_pairs import TrainingPairs

GROUP_SIZE = 16
"""Samples that a worker prepares at a time."""


class Pair(NamedTuple):
    """A sample prepared for the model.

    Args:
        source: its number among the sources.
        sample_id: names the image.
        pixel_values: (3, S, S), uint8.
        input_ids: of the caption, not padded.
        text: the caption.
        image: what other samples of the same image in its source have as well.
    """

    source: int
    sample_id: str
    pixel_values: Tensor
    input_ids: list[int]
    text: str
    image: str | int


class BrokenPair(NamedTuple):
    """A sample that could not be prepared.

    Args:
        source: its number among the sources.
        sample_id: names the sample.
        reason: why not.
    """

    source: int
    sample_id: str
    reason: str


class PairLoader:
    """Iterates over the batches of an epoch, or over what is left of it; the next iteration is the next epoch.

    A batch has `pixel_values` (B, 3, S, S) in uint8, `input_ids` (B, L), padded to the longest, and `sample_ids`, a
    list of B names, no two of a source alike: of two captions of one image, the second waits for another epoch. With
    `gather`, no two are alike in the batches that all processes take together either. All have the same number of
    batches.

    Args:
        pairs: the training set.
        batch_size: B.
        rank: of this process.
        world_size: number of processes.
        num_workers: processes that prepare samples; 0 to prepare them here.
        num_prefetched: batches that the workers prepare ahead.
        pin_memory: put batches where a GPU can fetch them by itself.
        drop_last: leave out the last batch of an epoch if it is smaller.
        gather: returns the tensors (B,) of all processes, each of which calls it as often, as one (world_size * B,)
            in the order of the ranks; None where a process cannot know what the others take.
        init_worker: what a worker calls first, with its number.

    Raises:
        ValueError: a number is out of range, or there are fewer samples than a whole batch takes.
    """

    def __init__(  # noqa: PLR0913, what a trainer knows of a process
        self,
        pairs: "TrainingPairs",
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        num_prefetched: int = 2,
        pin_memory: bool = False,
        drop_last: bool = True,
        gather: Callable[[Tensor], Tensor] | None = None,
        init_worker: Callable[[int], None] | None = None,
    ) -> None:
        if batch_size < 1 or num_workers < 0 or num_prefetched < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size={batch_size}, num_workers={num_workers}, num_prefetched={num_prefetched}, rank={rank}, "
                f"world_size={world_size}: at least 1, 0 and 1, and a rank from 0 to world_size - 1"
            )
        self.dataset, self.batch_size, self.drop_last, self.pin_memory = pairs, batch_size, drop_last, pin_memory
        self._gather = gather if world_size > 1 else None
        self._check_enough(world_size)
        list_file = Path(pairs.broken_list) if pairs.broken_list else None
        if list_file and world_size > 1:
            list_file = list_file.with_name(f"{list_file.stem}_rank{rank}{list_file.suffix}")
        self.broken = BrokenSamples([source.name for source in pairs.sources], pairs.max_broken_fraction, list_file)
        self.epoch = 0
        self._share, self._turn = Share(rank, world_size), 0
        # Samples of this epoch that are in batches: those of all processes before the share was dealt, and ours since.
        self._num_before, self._num_since = 0, 0
        num_groups = -(-num_prefetched * batch_size // GROUP_SIZE)
        self._turns = _Turns()
        self._groups: DataLoader = DataLoader(
            _Preparation(pairs),
            batch_size=None,
            sampler=self._turns,
            num_workers=num_workers,
            prefetch_factor=max(2, -(-num_groups // num_workers)) if num_workers else None,
            persistent_workers=num_workers > 0,
            worker_init_fn=init_worker,
            generator=torch.Generator(),  # or each iteration would draw from torch's own, which dropout draws from
        )

    def _check_enough(self, world_size: int) -> None:
        batch_size = self.batch_size * world_size
        sizes = [len(source) for source in self.dataset.sources]
        weights = self.dataset.fingerprint["weights"]
        if not self.drop_last and not weights:
            return
        shares = weights or [size / sum(sizes) for size in sizes]
        for source, size, share in zip(self.dataset.sources, sizes, shares, strict=True):
            if share * batch_size > size:
                raise ValueError(
                    f"{source.name} has {size:,} samples, fewer than the {share * batch_size:,.0f} it gives to a "
                    f"batch of all devices, {self.batch_size} x {world_size}: lower global_batch_size to at most "
                    f"{self.dataset.largest_batch // world_size * world_size:,}, or its weight"
                )

    def __len__(self) -> int:
        """Returns the number of batches of a whole epoch."""
        batch_size = self.batch_size * self._share.world_size
        return len(self.dataset) // batch_size if self.drop_last else -(-len(self.dataset) // batch_size)

    @property
    def epoch_progress(self) -> float:
        """Epochs that are behind, the present one in part: whole numbers at their ends, however a run was resumed."""
        done = (self._num_before / self._share.world_size + self._num_since) / self.batch_size
        left = self._num_left()
        batches_left = left // self.batch_size if self.drop_last else -(-left // self.batch_size)
        return self.epoch + (done / (done + batches_left) if done else 0)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch, unless this is the one that the loader is in."""
        if epoch != self.epoch:
            world_size = self._share.world_size
            self.epoch, self._share, self._turn = epoch, Share(self._share.rank, world_size), 0
            self._num_before, self._num_since = 0, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the batches of the epoch that are left.

        Raises:
            TooManyBrokenSamplesError: too many samples are broken.
        """
        self.broken.begin()
        self._turns.begin = self.epoch, self._share, self._turn
        results = (result for group in self._groups for result in _ungrouped(group))
        while size := self._next_size():
            pairs = self._take(results, size)
            self._num_since += size
            yield self._collate(pairs)
        self.set_epoch(self.epoch + 1)

    def _num_left(self) -> int:
        """How many samples of this epoch this process has still to give, the same number in all of them."""
        left, world_size = len(self.dataset) - self._num_before, self._share.world_size
        return (left // world_size if self.drop_last else -(-left // world_size)) - self._num_since

    def _next_size(self) -> int:
        """How many samples the next batch has; 0 at the end of the epoch."""
        left = self._num_left()
        return 0 if left < self.batch_size and self.drop_last else min(left, self.batch_size)

    def _take(self, results: Iterator[Pair | BrokenPair], size: int) -> list[Pair]:
        pairs: dict[ImageKey, Pair] = {}
        last = self._turn + size + 2 * len(self.dataset) // self._share.world_size
        is_settled = False
        while not is_settled:
            self._fill(pairs, results, size, last)
            is_settled = self._gather is None or not self._leave_to_others(pairs, self._gather)
        return list(pairs.values())

    def _leave_to_others(self, pairs: dict[ImageKey, Pair], gather: Callable[[Tensor], Tensor]) -> bool:
        """Takes out what processes of lower rank have as well; returns whether any process had to."""
        is_any, twins = find_twins(pairs, gather, self._share.rank, self._share.world_size)
        for image in twins:
            del pairs[image]
        return is_any

    def _fill(self, pairs: dict[ImageKey, Pair], results: Iterator[Pair | BrokenPair], size: int, last: int) -> None:
        """Adds pairs of other images until there are enough."""
        while len(pairs) < size:
            if self._turn > last and not pairs:
                raise TooManyBrokenSamplesError(f"there is no sample that can be read. {self.broken.summary()}")
            if self._turn > last:
                ids = ", ".join(str(image) for _, image in [*pairs][:3])
                raise RuntimeError(
                    f"this process finds fewer than {size} images that no other has in this batch, with ids such as "
                    f"{ids}: lower global_batch_size, or name a column of ids that tells images apart. "
                    f"{self.broken.summary()}"
                )
            result = next(results)
            self._turn += 1
            if isinstance(result, BrokenPair):
                self.broken.count_broken(*result)
            else:
                self.broken.count_whole(result.source)
                pairs.setdefault((result.source, result.image), result)

    def _collate(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        options: dict[str, Any] = {"pin_memory": self.pin_memory}
        pixel_values = torch.empty(len(pairs), *pairs[0].pixel_values.shape, dtype=torch.uint8, **options)
        torch.stack([pair.pixel_values for pair in pairs], out=pixel_values)
        length = max(len(pair.input_ids) for pair in pairs)
        pad = self.dataset.processor.tokenizer.pad_token_id
        rows = [pair.input_ids + [pad] * (length - len(pair.input_ids)) for pair in pairs]
        return {
            "pixel_values": pixel_values,
            "input_ids": torch.tensor(rows, **options),
            "sample_ids": [pair.sample_id for pair in pairs],
        }

    # State

    def state_dict(self) -> dict[str, Any]:
        """Returns where this process is, behind the last batch that was taken, as numbers that JSON can hold."""
        return {
            "data": self.dataset.fingerprint,
            "epoch": self.epoch,
            "rank": self._share.rank,
            "world_size": self._share.world_size,
            "pending": list(self._share.pending),
            "front": self._share.front,
            "turn": self._turn,
            "num_before": self._num_before,
            "num_since": self._num_since,
            "broken": self.broken.state_dict(),
        }

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Goes to where a run was; with another number of processes, to a share in what is left of the epoch.

        Args:
            states: of all processes of that run, which had all taken the same number of batches.

        Raises:
            ValueError: the states are of other data, or not all of one moment.
        """
        if not states:
            raise ValueError("there are no states of the data: the checkpoint was saved by another kind of loader")
        states = sorted(states, key=lambda state: state["rank"])
        first = states[0]
        self._check_states(states)
        rank, world_size = self._share.rank, self._share.world_size
        self.epoch, self._num_before, self._num_since = first["epoch"], first["num_before"], first["num_since"]
        share = Share(0, first["world_size"], tuple(first["pending"]), first["front"])
        if len(states) == world_size:
            self._share = Share(rank, world_size, share.pending, share.front)
            self._turn = states[rank]["turn"]
        else:
            self._share = share.dealt_anew([state["turn"] for state in states], rank, world_size)
            self._turn = 0
            self._num_before, self._num_since = self._num_before + self._num_since * len(states), 0
        self.broken.load_state_dicts([state["broken"] for state in states[rank::world_size]])
        if not self._next_size():  # a Trainer takes an epoch without batches for the end of all data
            self.set_epoch(self.epoch + 1)

    def _check_states(self, states: Sequence[dict[str, Any]]) -> None:
        first = states[0]
        if [state["rank"] for state in states] != list(range(first["world_size"])):
            ranks = [state["rank"] for state in states]
            raise ValueError(f"there are states of the ranks {ranks}, but there were {first['world_size']} processes")
        if len({(state["epoch"], state["num_before"], state["num_since"]) for state in states}) > 1:
            raise ValueError("the states are not of one moment: some processes had taken more samples than others")
        for name, value in self.dataset.fingerprint.items():
            if first["data"].get(name, value) != value:
                raise ValueError(
                    f"the data is not that of the checkpoint: {name} was {first['data'][name]} and is {value}. "
                    "Restore it, or start a new run from the checkpoint's weights"
                )


class _Turns(Sampler):
    """The positions of a process from where it is, in groups, without end: workers prepare ahead of the batches.

    It knows nothing of the loader: in a circle of objects, the queues of the workers would go before the workers.
    """

    begin: tuple[int, Share, int]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, share, first = self.begin
        for turn in count(first, GROUP_SIZE):
            yield [(epoch, share.position(number)) for number in range(turn, turn + GROUP_SIZE)]


_ELSEWHERE = torch.empty(0)


class _Preparation(Dataset):
    """Prepares groups of samples, the pixels of a group in one tensor: each tensor costs a file of shared memory."""

    def __init__(self, pairs: "TrainingPairs") -> None:
        self.pairs = pairs

    def __getitem__(self, group: list[tuple[int, int]]) -> tuple[list[Pair | BrokenPair], Tensor]:
        results = [self.pairs.prepare(*place) for place in group]
        pixels = [result.pixel_values for result in results if isinstance(result, Pair)]
        bare = [result._replace(pixel_values=_ELSEWHERE) if isinstance(result, Pair) else result for result in results]
        return bare, torch.stack(pixels) if pixels else _ELSEWHERE


def _ungrouped(group: tuple[list[Pair | BrokenPair], Tensor]) -> Iterator[Pair | BrokenPair]:
    results, stacked = group
    pixels = iter(stacked)
    return (r._replace(pixel_values=next(pixels)) if isinstance(r, Pair) else r for r in results)
