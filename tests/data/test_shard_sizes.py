import json

import fsspec
import pyarrow.parquet as pq
import pytest
from transformers.utils import logging

from clip_hf.data.loader import BrokenPair
from clip_hf.data.samples import Samples
from clip_hf.data.shard_sizes import parquet_footer
from clip_hf.data.sources import open_source
from clip_hf.data.training_pairs import TrainingPairs
from tests.data.source_kinds import write_shard, write_source


@pytest.fixture
def far(drawn, tmp_path, monkeypatch):
    """Puts four shards of a kind where only fsspec reaches, and tells their name and which were copied here."""
    monkeypatch.setenv("CLIP_HF_CACHE", str(tmp_path / "cache"))

    def put(kind) -> str:
        write_source(kind, tmp_path / kind, drawn, num_shards=4)
        for shard in (tmp_path / kind).iterdir():
            fsspec.filesystem("memory").pipe_file(f"/sizes/{kind}/{shard.name}", shard.read_bytes())
        return f"memory://sizes/{kind}/{{000..003}}.{kind}"

    yield put
    fsspec.filesystem("memory").rm("/sizes", recursive=True)


def num_copies(tmp_path) -> int:
    return len([file for file in (tmp_path / "cache").iterdir() if file.suffix != ".lock"])


def test_a_file_of_sizes_saves_the_reading_of_shards(far, tmp_path):
    name = far("tar")
    sizes = {f"{number:03}.tar": 10 for number in range(4)}
    fsspec.filesystem("memory").pipe_file("/sizes/tar/sizes.json", json.dumps(sizes).encode())
    assert len(open_source(name, streaming=True)) == 40
    assert num_copies(tmp_path) == 1, "the first, for its columns"


def test_without_one_all_are_read_and_that_is_told(far, tmp_path, caplog):
    logging.enable_propagation()
    assert len(open_source(far("tar"), streaming=True)) == 40
    logging.disable_propagation()
    assert num_copies(tmp_path) == 4 and "4 remote shards are read once to count their samples" in caplog.text


def test_of_remote_parquet_only_the_end_is_read(far, tmp_path):
    name = far("parquet")
    assert len(open_source(name, streaming=True)) == 40
    assert num_copies(tmp_path) == 1
    num_rows, columns = parquet_footer("memory://sizes/parquet/001.parquet")
    assert num_rows == 10 and set(columns) == {"image_id", "image", "captions", "extra"}


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"000.tar": 10}', b'{"000.tar": "10"}'])
def test_an_odd_file_of_sizes_is_named(content, far):
    name = far("tar")
    fsspec.filesystem("memory").pipe_file("/sizes/tar/sizes.json", content)
    with pytest.raises(ValueError, match=r"sizes\.json (is not JSON|gives no number of samples for 00)"):
        open_source(name, streaming=True)


def test_samples_that_are_listed_and_not_there_are_broken(drawn, small_processor, tmp_path):
    name = write_source("tar", tmp_path / "tar", drawn, num_shards=4)
    sizes = {f"{number:03}.tar": 12 if number else 10 for number in range(4)}
    (tmp_path / "tar" / "sizes.json").write_text(json.dumps(sizes))
    pairs = TrainingPairs([open_source(name, streaming=True)], small_processor)
    results = [pairs.prepare(0, position) for position in range(len(pairs))]
    broken = [result for result in results if isinstance(result, BrokenPair)]
    assert len(results) == 46 and len(broken) == 6
    assert all("has changed: it had 12 rows" in result.reason for result in broken)


@pytest.mark.parametrize(("kind", "listed"), [("tar", True), ("parquet", True), ("parquet", False)])
def test_columns_are_those_of_the_first_shard_that_has_rows(kind, listed, far, drawn, tmp_path):
    name, memory = far(kind), fsspec.filesystem("memory")
    empty = write_shard(kind, tmp_path / "empty", drawn[:1] if kind == "parquet" else [])
    if kind == "parquet":
        pq.write_table(pq.read_schema(empty).empty_table(), empty)
    memory.pipe_file(f"/sizes/{kind}/000.{kind}", empty.read_bytes())
    if listed:
        sizes = {f"{number:03}.{kind}": 10 * (number > 0) for number in range(4)}
        memory.pipe_file(f"/sizes/{kind}/sizes.json", json.dumps(sizes).encode())
    source = open_source(name, streaming=True)
    assert num_copies(tmp_path) == 2, "the empty one, and the next for its columns"
    assert all(source.draw(index, 0, 0).text in drawn[10 + index]["captions"] for index in range(len(source)))
    assert source.window == (10 if kind == "parquet" else None)


def test_sizes_that_are_too_small_are_told(drawn, tmp_path, caplog):
    name = write_source("tar", tmp_path / "tar", drawn, num_shards=4)
    sizes = {f"{number:03}.tar": 10 - number for number in range(4)}
    (tmp_path / "tar" / "sizes.json").write_text(json.dumps(sizes))
    source = open_source(name, streaming=True)
    logging.enable_propagation()
    for index in range(len(source)):
        source.draw(index, 0, 0)
    logging.disable_propagation()
    for number in range(1, 4):
        assert caplog.text.count(f"00{number}.tar has 10 samples, of which the first {10 - number} are read") == 1
    (tmp_path / "tar" / "sizes.json").write_text(json.dumps(sizes | {"000.tar": 9}))
    with pytest.raises(ValueError, match=r"000\.tar has 10 samples, but 9 in sizes\.json: correct or delete it"):
        open_source(name, streaming=True)


def test_a_shard_of_a_map_is_always_counted(drawn, tmp_path):
    name = write_source("tar", tmp_path / "tar", drawn, num_shards=2)
    (tmp_path / "tar" / "sizes.json").write_text("no")
    assert isinstance(open_source(name), Samples)
