import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from clip_hf import ClipHfProcessor, ClipHfTokenizer, distributed
from clip_hf.data.augmentation import Augmentation
from clip_hf.data.broken_samples import TooManyBrokenSamplesError
from clip_hf.data.columns import Columns
from clip_hf.data.sources import open_source
from clip_hf.data.training_pairs import TrainingPairs
from tests.data.source_kinds import write_rows, write_source
from tests.ranks import run_on_ranks


@pytest.fixture(params=["map", "stream", "weighted"])
def pairs(request, drawn, small_processor, tmp_path) -> TrainingPairs:
    """The 40 drawn samples, three of them broken, in one order of each kind."""
    streaming = request.param == "stream"
    halves = [drawn[:20], drawn[20:]] if request.param == "weighted" else [drawn]
    sources = []
    for number, half in enumerate(halves):
        name = write_source("tar", tmp_path / str(number), break_some(half, tmp_path), num_shards=4)
        sources.append(open_source(name, streaming=streaming))
    weights = [3, 1] if request.param == "weighted" else None
    return TrainingPairs(sources, small_processor, weights=weights, seed=5, num_lanes=2, window=4)


def break_some(samples, folder, numbers=("03", "17", "31")) -> list:
    broken = folder / "broken.jpg"
    broken.write_bytes(b"no image")
    return [type(sample)(sample | {"file": broken}) if sample["image_id"] in numbers else sample for sample in samples]


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch["sample_ids"] == other["sample_ids"]
        assert torch.equal(batch["input_ids"], other["input_ids"])
        assert torch.equal(batch["pixel_values"], other["pixel_values"])


def take(loader, number) -> list[dict]:
    """The next batches, over the ends of epochs."""
    batches = []
    while len(batches) < number:
        for batch in loader:
            batches.append(batch)
            if len(batches) == number:
                break
    return batches


def test_a_batch_is_what_the_model_takes(drawn, small_processor, tmp_path):
    pairs = TrainingPairs([open_source(write_source("jsonl", tmp_path / "pairs", drawn))], small_processor)
    for batch in pairs.loader(8):
        assert batch["pixel_values"].shape == (8, 3, 16, 16) and batch["pixel_values"].dtype == torch.uint8
        captions = [drawn[int(sample_id)]["captions"] for sample_id in batch["sample_ids"]]
        encoded = [small_processor.tokenizer(texts, padding=True)["input_ids"] for texts in captions]
        rows = batch["input_ids"].tolist()
        assert len({len(row) for row in rows}) == 1
        for row, options in zip(rows, encoded, strict=True):
            assert any(row[: len(option)] == option for option in options)
        tokenizer = small_processor.tokenizer
        texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
        assert rows == tokenizer(texts, padding=True)["input_ids"], "padded to the longest"


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing(num_workers, pairs):
    assert_equal(take(pairs.loader(6, num_workers=num_workers), 14), take(pairs.loader(6), 14))


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_stops_anywhere_goes_on_as_if_it_had_not(world_size, pairs):
    for rank in range(world_size):
        whole = take(pairs.loader(4, rank=rank, world_size=world_size), 14)
        for stop in (0, 3, 10):
            loaders = [pairs.loader(4, rank=number, world_size=world_size) for number in range(world_size)]
            for loader in loaders:
                take(loader, stop)
            states = json.loads(json.dumps([loader.state_dict() for loader in loaders]))
            resumed = pairs.loader(4, rank=rank, world_size=world_size)
            resumed.load_state_dict(states)
            assert_equal(take(resumed, 14 - stop), whole[stop:])
            assert resumed.broken.num_broken == loaders[rank].broken.num_broken or stop < 14


def test_a_state_is_that_of_the_batches_taken_whatever_is_prepared_ahead(pairs):
    with_workers, without = pairs.loader(4, num_workers=2, num_prefetched=5), pairs.loader(4)
    for number in (1, 3, 6):
        take(with_workers, number), take(without, number)
        assert with_workers.state_dict() == without.state_dict()


def test_saving_does_not_touch_torchs_random_numbers(pairs):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    loader = pairs.loader(4, num_workers=1)
    take(loader, 12)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_have_equally_many_batches_and_no_sample_in_common(world_size, drop_last, pairs):
    loaders = [pairs.loader(4, rank=rank, world_size=world_size, drop_last=drop_last) for rank in range(world_size)]
    for epoch in range(2):
        ranks = [list(loader) for loader in loaders]
        sizes = [[len(batch["sample_ids"]) for batch in batches] for batches in ranks]
        assert all(one == sizes[0] for one in sizes) and len(sizes[0]) == len(loaders[0])
        assert set(sizes[0][:-1]) == {4} and (sizes[0][-1] == 4 or not drop_last)
        for batches in zip(*ranks, strict=True):
            ids = [sample_id for batch in batches for sample_id in batch["sample_ids"]]
            assert len(set(ids)) >= len(ids) - (pairs.weights is not None) * world_size * 2
        assert [loader.epoch for loader in loaders] == [epoch + 1] * world_size
        if pairs.weights is None and drop_last:
            counts = Counter(id_ for batches in ranks for batch in batches for id_ in batch["sample_ids"])
            repeated = sum(counts.values()) - len(counts)
            assert repeated <= 3, "at most as many samples come twice as there are broken ones"


@pytest.mark.parametrize("old", [1, 2, 3])
@pytest.mark.parametrize("new", [1, 2, 3])
def test_another_number_of_processes_goes_on_with_what_is_left(old, new, drawn, small_processor, tmp_path):
    name = write_source("tar", tmp_path / "tar", break_some(drawn, tmp_path), num_shards=4)
    for streaming in (False, True):
        pairs = TrainingPairs([open_source(name, streaming=streaming)], small_processor, num_lanes=2, window=4)
        loaders = [pairs.loader(2, rank=rank, world_size=old, drop_last=False) for rank in range(old)]
        seen = [id_ for loader in loaders for batch in take(loader, 3) for id_ in batch["sample_ids"]]
        states = [loader.state_dict() for loader in loaders]
        rest = []
        for rank in range(new):
            loader = pairs.loader(2, rank=rank, world_size=new, drop_last=False)
            loader.load_state_dict(states)
            rest += [id_ for batch in loader for id_ in batch["sample_ids"]]
            assert loader.epoch == 1
        assert len(set(seen)) == 6 * old
        counts = Counter(seen + rest)
        assert set(counts) == {sample["image_id"] for sample in drawn} - {"03", "17", "31"}, "nothing is left out"
        assert sum(counts.values()) - 37 <= 3 + new, "only the end of the epoch, made even, repeats"


def test_a_run_that_stopped_at_the_end_of_an_epoch_begins_the_next(pairs):
    loader = pairs.loader(4)
    take(loader, 10)
    resumed = pairs.loader(4)
    resumed.load_state_dict([loader.state_dict()])
    assert (loader.epoch_progress, resumed.epoch_progress, resumed.epoch) == (1, 1, 1)
    assert len(list(resumed)) == 10


def test_a_set_smaller_than_a_batch_is_one_batch_where_that_is_allowed(drawn, small_processor, tmp_path):
    source = open_source(write_source("jsonl", tmp_path / "small", drawn[:10]))
    loader = TrainingPairs([source], small_processor).loader(16, drop_last=False)
    assert [len(batch["sample_ids"]) for batch in loader] == [10] and len(loader) == 1


def test_an_epoch_can_be_chosen_and_is_kept(pairs):
    loader = pairs.loader(4)
    first = take(loader, 3)
    loader.set_epoch(0)
    assert_equal(take(loader, 2), take(pairs.loader(4), 5)[3:])
    loader.set_epoch(2)
    other = pairs.loader(4)
    other.set_epoch(2)
    third = take(loader, 3)
    assert_equal(third, take(other, 3))
    assert [batch["sample_ids"] for batch in third] != [batch["sample_ids"] for batch in first]


def test_progress_is_whole_at_the_ends_of_epochs(pairs):
    loader = pairs.loader(4)
    progress = []
    for _ in range(2):
        progress += [loader.epoch_progress for _ in loader]
    assert progress == pytest.approx([number / 10 for number in range(1, 21)])
    assert progress[9] == 1 and progress[19] == 2
    loaders = [pairs.loader(4, rank=rank, world_size=2) for rank in range(2)]
    for one in loaders:
        take(one, 3)
    alone = pairs.loader(4)
    alone.load_state_dict([one.state_dict() for one in loaders])
    assert alone.epoch_progress == 0.6
    assert [alone.epoch_progress for _ in alone] == pytest.approx([0.7, 0.8, 0.9, 1])


def test_too_many_broken_samples_end_the_run(drawn, small_processor, tmp_path):
    samples = break_some(drawn, tmp_path, [sample["image_id"] for sample in drawn[:30]])
    source = open_source(write_source("tar", tmp_path / "tar", samples))
    pairs = TrainingPairs([source], small_processor, broken_list=tmp_path / "out" / "broken.jsonl")
    with pytest.raises(
        TooManyBrokenSamplesError, match=r"101 of the last 1,000 .* All are listed in .*broken_rank1.jsonl"
    ):
        take(pairs.loader(2, rank=1, world_size=2), 1000)
    assert len((tmp_path / "out" / "broken_rank1.jsonl").read_text().splitlines()) == 101
    lenient = TrainingPairs([source], small_processor, max_broken_fraction=0.9)
    assert len(take(lenient.loader(2), 50)) == 50


def test_the_list_holds_what_is_counted(drawn, small_processor, tmp_path):
    """A new run begins a new one, and a run that goes on does not repeat what came after its checkpoint."""
    name = write_source("tar", tmp_path / "tar", break_some(drawn, tmp_path))
    listed = tmp_path / "broken.jsonl"
    pairs = TrainingPairs([open_source(name)], small_processor, broken_list=listed)
    for _ in range(2):
        loader = pairs.loader(4)
        take(loader, 9)
        assert len(listed.read_text().splitlines()) == sum(loader.broken.num_broken) == 3
    state, whole = loader.state_dict(), []
    for number in (11, 0, 11):
        resumed = pairs.loader(4)
        resumed.load_state_dict([state])
        take(resumed, number)
        if number:
            whole.append(listed.read_text())
            assert len(whole[0].splitlines()) == sum(resumed.broken.num_broken) > 3
    assert whole[0] == whole[1]


@pytest.mark.parametrize("num_whole", [0, 2])
def test_a_small_set_of_broken_samples_says_that_they_are_broken(num_whole, drawn, small_processor, tmp_path):
    samples = break_some(drawn, tmp_path, [sample["image_id"] for sample in drawn[num_whole:]])
    source = open_source(write_source("tar", tmp_path / "tar", samples))
    loader = TrainingPairs([source], small_processor, max_broken_fraction=1).loader(8)
    kind, what = (TooManyBrokenSamplesError, "no sample") if num_whole == 0 else (RuntimeError, "fewer than 8 images")
    with pytest.raises(kind, match=rf"{what}.* \d+ of \d+ samples are broken \(.*it is empty"):
        take(loader, 1)


def test_states_that_do_not_fit_are_refused(pairs, small_processor):
    loaders = [pairs.loader(4, rank=rank, world_size=2) for rank in range(2)]
    states = [loader.state_dict() for loader in loaders]
    with pytest.raises(ValueError, match="there are no states of the data"):
        loaders[0].load_state_dict([])
    with pytest.raises(ValueError, match=r"states of the ranks \[0\], but there were 2 processes"):
        loaders[0].load_state_dict(states[:1])
    take(loaders[1], 1)
    with pytest.raises(ValueError, match="not of one moment"):
        loaders[0].load_state_dict([states[0], loaders[1].state_dict()])
    other = TrainingPairs(pairs.sources, small_processor, seed=6, weights=pairs.weights, num_lanes=2, window=4)
    with pytest.raises(ValueError, match="seed was 5 and is 6"):
        other.loader(4, rank=0, world_size=2).load_state_dict(states)


def test_other_data_of_the_same_size_is_refused_and_the_same_data_elsewhere_is_not(drawn, small_processor, tmp_path):
    def load(folder, names=("0", "1"), samples=drawn, state=None, processor=small_processor, **options) -> dict:
        halves = [samples[:20], samples[20:]]
        rows = [[{"image": str(s["file"]), "caption": s["captions"][0]} for s in half] for half in halves]
        (tmp_path / folder).mkdir()
        for name, half in zip(names, rows, strict=True):
            write_rows("csv", tmp_path / folder / name, half)
        source = open_source(f"{tmp_path}/{folder}/*.csv", options.pop("columns", Columns()), streaming=True)
        loader = TrainingPairs([source], processor, **options).loader(4)
        if state is not None:
            loader.load_state_dict([json.loads(json.dumps(state))])
        return loader.state_dict()

    state = load("here")
    load("there", state=state)
    other_tokenizer = ClipHfTokenizer.train(["a red cat", "a blue dog"] * 4, vocab_size=530, context_length=16)
    others = {
        "names": {"names": ("0", "2")},
        "captions": {"samples": drawn[::-1]},
        "columns": {"columns": Columns(id="caption")},
        "augmentation": {"augmentation": Augmentation(flip_probability=0.5)},
        "tokenizer": {"processor": ClipHfProcessor(small_processor.image_processor, other_tokenizer)},
    }
    for folder, options in others.items():
        what = folder if folder in ("augmentation", "tokenizer") else "sources"
        with pytest.raises(ValueError, match=f"not that of the checkpoint: {what} was"):
            load(folder, state=state, **options)


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"num_workers": -1}, {"num_prefetched": 0}]
)
def test_impossible_numbers_are_named(options, pairs):
    with pytest.raises(ValueError, match="batch_size="):
        pairs.loader(**({"batch_size": 4} | options))


def test_a_batch_must_not_be_larger_than_its_data(drawn, small_processor, tmp_path):
    small = open_source(write_source("jsonl", tmp_path / "small", drawn[:10]))
    large = open_source(write_source("jsonl", tmp_path / "large", drawn[10:]))
    message = r"small.*has 10 samples, fewer than the 12 .* 6 x 2: lower global_batch_size to at most 10, or"
    with pytest.raises(ValueError, match=message):
        TrainingPairs([small], small_processor).loader(6, world_size=2)
    with pytest.raises(ValueError, match=r"small.*fewer than the 15 .*global_batch_size to at most 13"):
        TrainingPairs([small, large], small_processor, weights=[3, 1]).loader(20)


class Gathering:
    """Lets threads stand for processes: gives each the tensors of all."""

    def __init__(self, world_size) -> None:
        self.tensors, self.barrier = [torch.empty(0)] * world_size, threading.Barrier(world_size, timeout=30)

    def of_rank(self, rank) -> Callable[[torch.Tensor], torch.Tensor]:
        def gather(tensor):
            self.tensors[rank] = tensor
            self.barrier.wait()
            gathered = torch.cat(self.tensors)
            self.barrier.wait()
            return gathered

        return gather


def take_together(pairs, world_size, number, states=None) -> tuple[list[list[dict]], list[dict]]:
    """The next batches of each rank, and where they are then."""
    gathering = Gathering(world_size)
    loaders = [
        pairs.loader(4, rank=rank, world_size=world_size, gather=gathering.of_rank(rank)) for rank in range(world_size)
    ]
    for loader in loaders if states else []:
        loader.load_state_dict(states)
    with ThreadPoolExecutor(world_size) as pool:
        batches = list(pool.map(lambda loader: take(loader, number), loaders))
    return batches, [loader.state_dict() for loader in loaders]


@pytest.fixture(params=["stream", "weighted"])
def twins(request, drawn, small_processor, tmp_path) -> TrainingPairs:
    """Two captions of each of 40 images, far from each other in a stream; or sources with epochs of their own."""
    if request.param == "weighted":
        halves = [write_source("jsonl", tmp_path / str(number), drawn[number::2]) for number in range(2)]
        return TrainingPairs([open_source(half) for half in halves], small_processor, weights=[19, 1])
    for number in range(2):
        rows = [
            {"image_id": sample["image_id"], "image": str(sample["file"]), "caption": sample["captions"][number]}
            for sample in drawn
        ]
        write_rows("jsonl", tmp_path / f"{number}", rows)
    source = open_source(f"{tmp_path}/{{0,1}}.jsonl", streaming=True)
    return TrainingPairs([source], small_processor, num_lanes=2, window=4)


@pytest.mark.parametrize("world_size", [2, 3])
def test_no_batch_of_all_processes_has_an_image_twice(world_size, twins):
    def ids_of(ranks):
        return [[id_ for batch in batches for id_ in batch["sample_ids"]] for batches in zip(*ranks, strict=True)]

    alone = [take(twins.loader(4, rank=rank, world_size=world_size), 15) for rank in range(world_size)]
    assert any(len(set(ids)) < len(ids) for ids in ids_of(alone)), "without each other's ids they cannot know"
    together, _ = take_together(twins, world_size, 15)
    assert all(len(set(ids)) == len(ids) == 4 * world_size for ids in ids_of(together))
    for rank in range(world_size):
        seen = [id_ for batch in together[rank] for id_ in batch["sample_ids"]]
        assert len(set(seen)) > 10, "and none is starved"


def take_on_rank(pairs) -> list[list[str]]:
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    loader = pairs.loader(4, **ranks, num_workers=1, gather=distributed.all_gather)
    return [batch["sample_ids"] for batch in take(loader, 9)]


@pytest.mark.slow
def test_processes_gather_as_threads_do(twins):
    expected, _ = take_together(twins, 2, 9)
    found = run_on_ranks(take_on_rank, 2, twins)
    assert found == [[batch["sample_ids"] for batch in batches] for batches in expected]


def test_processes_that_know_of_each_other_go_on_where_they_were(twins):
    whole, _ = take_together(twins, 2, 9)
    first, states = take_together(twins, 2, 4)
    rest, _ = take_together(twins, 2, 5, json.loads(json.dumps(states)))
    for rank in range(2):
        assert_equal([*first[rank], *rest[rank]], whole[rank])


def test_too_few_different_images_end_the_run(drawn, small_processor, tmp_path):
    same = [type(sample)(sample | {"image_id": "same"}) for sample in drawn]
    source = open_source(write_source("jsonl", tmp_path / "pairs", same), streaming=True)
    with pytest.raises(RuntimeError, match=r"fewer than 4 images .* with ids such as same: lower"):
        list(TrainingPairs([source], small_processor).loader(4))


def test_broken_samples_are_replaced_counted_and_listed(drawn, small_processor, tmp_path):
    source = open_source(write_source("tar", tmp_path / "tar", break_some(drawn, tmp_path)))
    pairs = TrainingPairs([source], small_processor, broken_list=tmp_path / "broken.jsonl")
    loader = pairs.loader(10)
    broken = loader.broken
    batches = list(loader)
    assert [len(batch["sample_ids"]) for batch in batches] == [10] * 4
    listed = [json.loads(line) for line in (tmp_path / "broken.jsonl").read_text().splitlines()]
    assert {entry["sample_id"] for entry in listed} == {"03", "17", "31"}
    assert all(entry["source"] == source.name and "image format" in entry["reason"] for entry in listed)
    assert broken.num_broken[0] == len(listed) and broken.num_read[0] == 40 + len(listed)
