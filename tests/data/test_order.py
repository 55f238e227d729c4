import itertools
from collections import Counter

import numpy as np
import pytest

from clip_hf.data.order import Share, ShuffledOrder, StreamOrder, WeightedOrder, permute

SIZES = (7, 1, 30, 12, 0, 25)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 16, 17, 1000, 4097])
def test_permute_is_a_permutation(length):
    for key in range(3):
        assert sorted(permute(index, length, key) for index in range(length)) == list(range(length))


def test_permute_is_uniform():
    """Each of the 24 orders of 4, and each place of the first of 10, is as frequent as any other (chi-square)."""
    orders = Counter(tuple(permute(index, 4, seed) for index in range(4)) for seed in range(4800))
    assert len(orders) == 24
    assert sum((count - 200) ** 2 / 200 for count in orders.values()) < 60  # 23 degrees of freedom: p = 3e-5
    places = Counter((index, permute(index, 10, seed)) for index in range(10) for seed in range(2000))
    assert sum((count - 200) ** 2 / 200 for count in places.values()) < 160  # 81 degrees of freedom


def test_permute_reaches_into_lengths_that_no_memory_holds():
    length = 10**15
    targets = {permute(index, length, 0) for index in range(1000)}
    assert len(targets) == 1000 and max(targets) > 0.98 * length


def orders(seed: int = 0) -> list:
    stream = StreamOrder(SIZES, seed, num_lanes=4, window=8)
    return [
        ShuffledOrder(75, seed),
        stream,
        StreamOrder(SIZES, seed, num_lanes=100, window=1),
        StreamOrder(SIZES, seed, num_lanes=1, window=1000),
        StreamOrder([75], seed, num_lanes=3, window=10),
        StreamOrder(SIZES, seed, num_lanes=2, window=[3, 8, 100, 1, 5, 24]),
    ]


@pytest.mark.parametrize("order", orders(), ids=lambda order: f"{type(order).__name__}-{vars(order).get('num_lanes')}")
def test_an_epoch_has_every_sample_once_and_differs_from_the_next(order):
    epochs = [[order(epoch, position) for position in range(75)] for epoch in range(3)]
    for number, epoch in enumerate(epochs):
        assert sorted(place.sample for place in epoch) == list(range(75))
        assert {place.epoch for place in epoch} == {number}
    assert epochs[0] != [place._replace(epoch=0) for place in epochs[1]]
    assert [order(1, 75 + position) for position in range(75)] == epochs[1], "behind the end it begins again"


@pytest.mark.parametrize("number", range(6))
def test_an_order_can_be_entered_anywhere(number):
    whole = [orders()[number](2, position) for position in range(75)]
    assert [orders()[number](2, position) for position in (74, 3, 40)] == [whole[74], whole[3], whole[40]]
    assert whole != [orders(seed=1)[number](2, position) for position in range(75)]


def test_a_stream_reads_few_shards_at_a_time_and_shuffles_within_windows():
    sizes = [100] * 20
    order = StreamOrder(sizes, seed=0, num_lanes=4, window=50)
    samples = [order(0, position).sample for position in range(2000)]
    for start in range(0, 2000, 100):
        touched = {sample // 100 for sample in samples[start : start + 100]}
        assert len(touched) <= 8, "four lanes, each in one shard or at the border of two"
    for lane in range(4):
        blocks = [sample // 50 for sample in samples[lane::4]]
        assert len(list(itertools.groupby(blocks))) == 10, "each window is read from end to end"
        places = np.array(samples[lane::4][:50]) % 50
        assert abs(np.corrcoef(places, np.arange(50))[0, 1]) < 0.5, "and is shuffled"
    first = [order(epoch, 0).sample // 100 for epoch in range(30)]
    assert len(set(first)) > 10, "shards come in another order in each epoch"


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_read_their_own_shards(world_size):
    order = StreamOrder([100] * 20, seed=0, num_lanes=4, window=50)
    shards = [
        {order(0, position).sample // 100 for position in range(rank, 2000, world_size)} for rank in range(world_size)
    ]
    assert sum(map(len, shards)) == 20, "none is read by two"


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (1, 8)])
def test_weights_are_kept_at_any_moment(weights):
    order = WeightedOrder([ShuffledOrder(500, 0), StreamOrder([300, 200], 0, 2, 10)], weights, seed=0)
    places = [order(position // 1000, position % 1000) for position in range(20_000)]
    share = weights[0] / sum(weights)
    for start in range(0, 20_000, 1000):
        first = sum(place.sample < 500 for place in places[start : start + 1000])
        assert abs(first - 1000 * share) < 70  # 4.5 standard deviations at most
    for source in (range(500), range(500, 1000)):
        own = [place for place in places if place.sample in source]
        assert [place.epoch for place in own] == sorted(place.epoch for place in own)
        for epoch in range(own[-1].epoch):
            assert sorted(place.sample for place in own if place.epoch == epoch) == list(source)
    again = WeightedOrder([ShuffledOrder(500, 0), StreamOrder([300, 200], 0, 2, 10)], weights, seed=0)
    assert again(17, 321) == places[17_321]


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, -1), (1, 1e-6), (1, float("nan")), (1, float("inf"))])
def test_impossible_weights_are_named(weights):
    with pytest.raises(ValueError, match="the weights are"):
        WeightedOrder([ShuffledOrder(5, 0), ShuffledOrder(5, 0)], weights, seed=0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_processes_share_all_positions_and_none_twice(world_size):
    positions = [Share(rank, world_size).position(turn) for rank in range(world_size) for turn in range(10)]
    assert sorted(positions) == list(range(10 * world_size))


def test_positions_that_are_left_are_dealt_anew_without_loss():
    """Whatever numbers of processes follow one another, and however unevenly they have read."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        shares, read = [Share(0, 1)], set()
        for _ in range(4):
            turns = rng.integers(0, 6, len(shares)).tolist()
            new = [share.position(turn) for share, num in zip(shares, turns, strict=True) for turn in range(num)]
            assert not read & set(new)
            read |= set(new)
            world_size = int(rng.integers(1, 5))
            shares = [shares[0].dealt_anew(turns, rank, world_size) for rank in range(world_size)]
        left = sorted(share.position(turn) for share in shares for turn in range(60))
        assert not read & set(left)
        assert read | set(left[:60]) >= set(range(60)), "and nothing is left out"
