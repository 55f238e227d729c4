import contextlib
import pickle
import random
from weakref import WeakSet

import pytest
from datasets import Dataset
from transformers.utils import logging

from clip_hf.data import samples as module
from clip_hf.data import tables
from clip_hf.data.columns import Columns
from clip_hf.data.rows import BrokenSampleError
from clip_hf.data.samples import Samples, captions_for_tokenizer
from clip_hf.data.sources import open_source
from clip_hf.data.training_pairs import TrainingPairs
from tests.data.source_kinds import write_rows, write_source

IDS = ["b", "a", "b", None, "a", None]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_that_name_one_image_are_one_sample(kind, tmp_path):
    rows = [{"image": b"" if kind == "parquet" else "x", "image_id": id_} for id_ in IDS]
    rows = [row | {"caption": f"caption {number}"} for number, row in enumerate(rows)]
    if kind == "parquet":
        rows = [row | {"image": b"bytes"} for row in rows]
        Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    else:
        write_rows("jsonl", tmp_path / "a", rows)
    source = open_source(tmp_path / f"a.{kind}")
    captions = [["caption 0", "caption 2"], ["caption 1", "caption 4"], ["caption 3"], ["caption 5"]]
    assert [source[index]["captions"] for index in range(len(source))] == captions
    assert [source.sample_id(index) for index in range(2)] == ["b", "a"]
    assert source.sample_id(2) != source.sample_id(3), "what has no name is like no other"


def test_a_draw_depends_on_its_sample_alone(drawn, tmp_path):
    source = open_source(write_source("csv", tmp_path / "csv", drawn))
    draw = source.draw(3, seed=1, epoch=2)
    rng = random.Random("1 2 03")
    assert draw.text == rng.choice(drawn[3]["captions"]) and draw.image == drawn[3]["file"].read_bytes()
    assert draw.rng.random() == rng.random(), "and what follows goes on from there"


def test_an_empty_caption_among_the_rows_of_an_image_is_passed_over(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"image")
    rows = [{"image": "a.jpg", "caption": caption} for caption in ("", "one", " ", "two")]
    source = open_source(write_rows("jsonl", tmp_path / "pairs", rows))
    assert {source.draw(0, seed, 0).text for seed in range(40)} == {"one", "two"}
    broken = [{"image": "a.jpg", "caption": ""}, {"image": "a.jpg"}, {"image": "a.jpg", "caption": "one"}]
    source = open_source(write_rows("jsonl", tmp_path / "broken", broken))
    texts = set()
    for seed in range(40):
        with contextlib.suppress(BrokenSampleError):  # where the row without a caption is drawn
            texts.add(source.draw(0, seed, 0).text)
    assert texts == {"one"}
    rows = [{"image": "a.jpg", "caption": ""}] * 2
    with pytest.raises(BrokenSampleError, match="the caption is empty"):
        open_source(write_rows("jsonl", tmp_path / "empty", rows)).draw(0, 0, 0)


def test_a_row_without_an_image_is_named_whatever_names_the_images(tmp_path):
    (tmp_path / "b.jpg").write_bytes(b"image")
    rows = [{"text": "a"}, {"file_name": "b.jpg", "text": "c"}, {"file_name": "b.jpg", "text": 5}]
    source = open_source(write_rows("jsonl", tmp_path / "pairs", rows))
    for read in (lambda: source[0], lambda: source.draw(0, 0, 0)):
        with pytest.raises(BrokenSampleError, match=r"pairs\.jsonl, row 0: it has no file_name"):
            read()
    assert source.captions_of_row(0) == ["a"] and source.sample_id(0).endswith("pairs.jsonl#0")
    with pytest.raises(BrokenSampleError, match=r"b\.jpg: the caption is 5, not"):
        source.captions_of_row(2)
    rows = [{"image": b"bytes", "text": "a"}, {"image": None, "text": "b"}]
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BrokenSampleError, match=r"a\.parquet#1: there is no image, but None"):
        open_source(tmp_path / "a.parquet").draw(1, 0, 0)


def test_copies_of_all_sources_stay(drawn, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(Samples, "_living", WeakSet())
    monkeypatch.setattr(module, "NUM_KEPT_COPIES", 2)
    monkeypatch.setattr(module, "local_copy", lambda path, num_kept: (kept.append(num_kept), path)[1])
    sources = [open_source(write_source("tar", tmp_path / name, drawn, num_shards=4)) for name in ("a", "b")]
    assert max(kept) - min(kept) == 4, "the second source keeps its own beside those of the first"
    monkeypatch.setattr(Samples, "_living", WeakSet())
    clones = [pickle.loads(pickle.dumps(source)) for source in sources]  # as a worker gets them
    kept.clear()
    clones[0]._tables.clear()
    clones[0].draw(0, 0, 0)
    assert kept == [8]


def test_a_stream_keeps_few_shards_open(drawn, tmp_path, monkeypatch):
    opened = []
    open_table = module.open_table
    monkeypatch.setattr(module, "open_table", lambda path, name: (opened.append(name), open_table(path, name))[1])
    source = open_source(write_source("tar", tmp_path / "tar", drawn, num_shards=8), streaming=True)
    source.max_open = 3
    source._tables.clear()
    opened.clear()
    for index in (0, 5, 10, 0, 5, 10, 15, 20, 0):
        source.draw(index, 0, 0)
    names = [name.rpartition("/")[2] for name in opened]
    assert len(source._tables) == 3 and names.count("000.tar") <= 2 and names[-1] == "000.tar"


def test_a_shard_that_cannot_be_opened_any_more_is_tried_again_after_minutes(drawn, tmp_path, monkeypatch):
    source = open_source(write_source("tar", tmp_path / "tar", drawn, num_shards=2), streaming=True)
    attempts = []

    def fail(path, num_kept):
        attempts.append(path)
        raise ConnectionError("unplugged")

    monkeypatch.setattr(module, "local_copy", fail)
    source._tables.clear()
    for index in range(20):
        with pytest.raises(BrokenSampleError, match="unplugged"):
            source.draw(index, 0, 0)
        assert source.sample_id(index).endswith(f"#{index}")
    assert len(attempts) == 1
    now = module.time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.SECONDS_TO_ANOTHER_ATTEMPT + 60)
    with pytest.raises(BrokenSampleError, match="unplugged"):
        source.draw(0, 0, 0)
    monkeypatch.setattr(module, "local_copy", lambda path, num_kept: path)
    with pytest.raises(BrokenSampleError, match="unplugged"):
        source.draw(0, 0, 0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 2 * module.SECONDS_TO_ANOTHER_ATTEMPT + 120)
    assert source.draw(0, 0, 0).sample_id == "00"


def test_names_may_be_no_utf_8(tmp_path):
    (tmp_path / "a\udcff.jpg").write_bytes(b"image")
    rows = [{"image": "a\udcff.jpg", "image_id": name, "caption": f"a {name!r}"} for name in ("b", "\ud800", "\ud800")]
    source = open_source(write_rows("jsonl", tmp_path / "pairs", rows))
    draws = [source.draw(index, 0, 0) for index in range(len(source))]
    assert [(draw.sample_id, draw.image) for draw in draws] == [("b", b"image"), ("\ud800", b"image")]


def test_an_index_beyond_the_end_is_refused(drawn, tmp_path):
    source = Samples("pairs", [write_source("jsonl", tmp_path / "pairs", drawn)], Columns(image="image"))
    with pytest.raises(IndexError, match=r"index 40 is not in \[0, 40\)"):
        source[40]
    with pytest.raises(IndexError):
        source.draw(-1, 0, 0)


def test_a_tokenizer_learns_from_some_of_each_source_and_reads_no_more_of_a_stream(drawn, tmp_path, caplog):
    sources = [
        open_source(write_source("tar", tmp_path / str(number), half, num_shards=10), streaming=True)
        for number, half in enumerate((drawn[:20], drawn[20:]))
    ]
    every = [sample["captions"] for sample in drawn]
    logging.enable_propagation()
    assert list(captions_for_tokenizer(sources)) == every and not caplog.text
    for source in sources:
        source._tables.clear()
    found = list(captions_for_tokenizer(sources, most=20))
    logging.disable_propagation()
    assert found == every[:4] + every[20:24]
    assert [len(source._tables) for source in sources] == [2, 2], "shards that were opened"
    assert caplog.text.count("learns from the first 10 captions") == 2


@pytest.mark.parametrize(("num_shards", "num_lanes"), [(1, 1), (1, 4), (8, 16), (40, 4)])
def test_a_parquet_stream_reads_row_groups_hardly_twice(
    num_shards, num_lanes, drawn, small_processor, tmp_path, monkeypatch
):
    reads = []
    read = tables.ParquetTable._read
    monkeypatch.setattr(tables.ParquetTable, "_read", lambda *args: (reads.append(args), read(*args))[1])
    monkeypatch.setattr(tables, "KEPT_BYTES", 2 * 11 * 1500)  # two row groups of 11 images
    samples = [type(sample)(sample | {"image_id": str(n)}) for n, sample in enumerate(drawn * 22)]
    name = write_source("parquet", tmp_path / "parquet", samples, num_shards, group_size=11)
    source = open_source(name, streaming=True)
    num_groups = sum(-(-size // 11) for size in source.shard_sizes)
    pairs = TrainingPairs([source], small_processor, num_lanes=num_lanes)
    reads.clear()
    ids = {pairs.prepare(0, position).sample_id for position in range(880)}
    assert len(ids) == 880 and num_groups - num_shards <= len(reads) < 1.4 * num_groups
