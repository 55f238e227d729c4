"""In which order samples are read: pure functions of seed, epoch and position, which can be entered anywhere.

A position is a place in the order of all processes together. Nothing here depends on how many processes or workers
there are; `Share` deals the positions out to processes, and deals the rest out anew when their number has changed.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

_NUM_ROUNDS = 8
_WORD = 2**64 - 1
_MIXTURE_CYCLE = 10_000


class Place(NamedTuple):
    """What stands at a position.

    Args:
        epoch: how often all samples were passed before; draws of crops and captions depend on it.
        sample: its index, counted through all sources.
    """

    epoch: int
    sample: int


class Order(Protocol):
    """Which sample comes when."""

    def __len__(self) -> int:
        """Returns the number of positions of an epoch."""

    def __call__(self, epoch: int, position: int) -> Place:
        """Returns what stands at a position, 0 or more; behind the end the epoch begins again."""


def permute(index: int, length: int, *key: int) -> int:
    """Returns where a random permutation takes an index: nothing is held in memory, whatever the length.

    A Feistel network over the next power of four, entered again while it leads out of the range (Black and Rogaway,
    Ciphers with arbitrary finite domains, 2002, section 4).

    Args:
        index: in [0, length).
        length: of the permutation.
        key: chooses it.
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    round_keys = _round_keys(key)
    while True:
        left, right = index >> half, index & mask
        for round_key in round_keys:
            mixed = (right ^ round_key) * 0x9E3779B97F4A7C15 & _WORD
            mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & _WORD
            left, right = right, left ^ (mixed >> 32 & mask)
        index = left << half | right
        if index < length:
            return index


@lru_cache(maxsize=4096)
def _round_keys(key: tuple[int, ...]) -> tuple[int, ...]:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * _NUM_ROUNDS).digest()
    return tuple(int.from_bytes(digest[start : start + 8], "little") for start in range(0, len(digest), 8))


class ShuffledOrder:
    """All samples in one random order, another one in each epoch: for sources of which any sample is near at hand.

    Args:
        num_samples: of all sources.
        seed: chooses the order.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples, self.seed = num_samples, seed

    def __len__(self) -> int:
        return self.num_samples

    def __call__(self, epoch: int, position: int) -> Place:
        """Returns what stands at a position."""
        return Place(epoch, permute(position % self.num_samples, self.num_samples, self.seed, epoch))


class StreamOrder:
    """Shards in random order, several read side by side, and within each a window shuffled at a time.

    The shards, one after the other, are cut into `num_lanes` pieces of one length, from which samples are taken in
    turn. Where the number of lanes is a multiple of the number of processes, each process reads its own lanes only.

    Args:
        shard_sizes: samples of each shard.
        seed: chooses the order.
        num_lanes: how many shards are open at a time, in all processes together.
        window: consecutive samples of a shard that are shuffled; one number, or one for each shard.
    """

    def __init__(self, shard_sizes: Sequence[int], seed: int, num_lanes: int, window: int | Sequence[int]) -> None:
        self.sizes = np.array(shard_sizes, dtype=np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.num_samples = int(self.sizes.sum())
        self.seed, self.num_lanes = seed, num_lanes
        self.windows = np.broadcast_to(window, len(shard_sizes))
        self._epoch = -1

    def __len__(self) -> int:
        return self.num_samples

    def __call__(self, epoch: int, position: int) -> Place:
        """Returns what stands at a position."""
        row, lane = divmod(position % self.num_samples, self.num_lanes)
        length, num_longer = divmod(self.num_samples, self.num_lanes)
        shard, offset = self._locate(epoch, lane * length + min(lane, num_longer) + row)
        window = int(self.windows[shard])
        block, place = divmod(offset, window)
        start = block * window
        place = permute(place, min(window, int(self.sizes[shard]) - start), self.seed, epoch, shard, block)
        return Place(epoch, int(self.starts[shard]) + start + place)

    def _locate(self, epoch: int, number: int) -> tuple[int, int]:
        """The shard, and the place in it, of a sample counted through the shards in this epoch's order."""
        if epoch != self._epoch:
            num_shards = len(self.sizes)
            order = [permute(turn, num_shards, self.seed, epoch, num_shards) for turn in range(num_shards)]
            self._shards, self._ends = np.array(order), np.cumsum(self.sizes[order])
            self._epoch = epoch
        turn = int(np.searchsorted(self._ends, number, side="right"))
        shard = int(self._shards[turn])
        return shard, number - int(self._ends[turn] - self.sizes[shard])


class WeightedOrder:
    """Samples of several sources in given shares, each source in its own order and with epochs of its own.

    Args:
        orders: of the sources.
        weights: share of each, above 0; their sum does not matter.
        seed: chooses where in the mixture each stands.

    Raises:
        ValueError: a weight is missing, not above 0, or less than a ten-thousandth of all.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], seed: int) -> None:
        if len(weights) != len(orders) or not all(0 < weight < math.inf for weight in weights):
            raise ValueError(f"the weights are {list(weights)}, but must be {len(orders)} finite numbers above 0")
        shares = np.array(weights, dtype=np.float64) / sum(weights) * _MIXTURE_CYCLE
        counts = np.floor(shares).astype(int)
        counts[np.argsort(counts - shares, kind="stable")[: _MIXTURE_CYCLE - counts.sum()]] += 1
        if counts.min() == 0:
            raise ValueError(
                f"the weights are {list(weights)}, but none may be below 1/{_MIXTURE_CYCLE:,} of their sum"
            )
        self.orders, self.counts, self.seed = orders, counts, seed
        self.num_samples = sum(map(len, orders))
        self.offsets = np.cumsum([0, *map(len, orders)])
        self._cycle = -1

    def __len__(self) -> int:
        return self.num_samples

    def __call__(self, epoch: int, position: int) -> Place:
        """Returns what stands at a position; its epoch is that of the source."""
        cycle, step = divmod(epoch * self.num_samples + position % self.num_samples, _MIXTURE_CYCLE)
        if cycle != self._cycle:
            sources = np.random.default_rng((self.seed, cycle)).permutation(
                np.repeat(np.arange(len(self.counts)), self.counts)
            )
            turns = np.empty_like(sources)
            for source, count in enumerate(self.counts):
                turns[sources == source] = np.arange(count)
            self._sources, self._turns, self._cycle = sources, turns, cycle
        source = int(self._sources[step])
        order = self.orders[source]
        own_epoch, own_position = divmod(cycle * int(self.counts[source]) + int(self._turns[step]), len(order))
        place = order(own_epoch, own_position)
        return Place(place.epoch, int(self.offsets[source]) + place.sample)


@dataclass(frozen=True)
class Share:
    """The positions of an epoch that one process reads: every `world_size`-th of those that are left.

    Args:
        rank: of the process.
        world_size: number of processes.
        pending: positions before `front` that are left, from a run with another number of processes.
        front: all positions from here on are left.
    """

    rank: int
    world_size: int
    pending: tuple[int, ...] = ()
    front: int = 0

    def position(self, turn: int) -> int:
        """Returns the position that this process reads as its number `turn`, 0 or more."""
        return self._left(self.rank + turn * self.world_size)

    def _left(self, number: int) -> int:
        num_pending = len(self.pending)
        return self.pending[number] if number < num_pending else self.front + number - num_pending

    def dealt_anew(self, turns: Sequence[int], rank: int, world_size: int) -> "Share":
        """Returns the share of one process in what all processes have left.

        Args:
            turns: how many positions each of the processes so far has read.
            rank: of the process among the new ones.
            world_size: their number.
        """
        old = self.world_size
        end = max(max(turns) * old, len(self.pending))
        numbers = (number for number in range(min(turns) * old, end) if number // old >= turns[number % old])
        return Share(rank, world_size, tuple(map(self._left, numbers)), self._left(end))
