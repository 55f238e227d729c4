import json
import sys

import datasets
import fsspec
import pytest
import torch
from datasets import Dataset

from clip_hf.data import rows, sources
from clip_hf.data.columns import Columns
from clip_hf.data.shapes import SEEN, UNSEEN
from clip_hf.data.sources import captions_of, open_source
from clip_hf.data.training_pairs import TrainingPairs
from tests.data.source_kinds import KINDS, write_rows, write_shard, write_source

SHARDED_KINDS = [kind for kind in KINDS if not kind.startswith("folder")]


def batches(source, processor, batch_size=8, epochs=2) -> list[dict]:
    loader = TrainingPairs([source], processor, seed=3, num_lanes=2, window=16).loader(batch_size)
    return [batch for _ in range(epochs) for batch in loader]


def assert_equal(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert batch["sample_ids"] == other["sample_ids"]
        assert torch.equal(batch["input_ids"], other["input_ids"])
        assert torch.equal(batch["pixel_values"], other["pixel_values"])


@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_kind_gives_the_same_batches(num_shards, drawn, small_processor, tmp_path):
    reference = None
    for kind in KINDS:
        source = open_source(write_source(kind, tmp_path / kind, drawn, num_shards))
        assert len(source) == 40, kind
        found = batches(source, small_processor)
        reference = reference or found
        assert_equal(found, reference)


def test_every_kind_of_real_pairs_gives_the_same_batches(real, small_processor, tmp_path, monkeypatch):
    places = {kind: write_source(kind, tmp_path / kind, real) for kind in KINDS}
    repository = datasets.load_dataset_builder("parquet", data_files={"train": places["parquet"]})
    monkeypatch.setattr(sources, "load_dataset_builder", lambda *_: repository)
    streamed = [places[kind] for kind in SHARDED_KINDS if kind not in {"csv", "tsv"}]  # whose rows are samples
    for streaming, names in ((False, [*places.values(), "me/pairs"]), (True, streamed)):
        opened = (open_source(name, streaming=streaming) for name in names)
        reference, *others = (batches(source, small_processor, batch_size=40, epochs=1) for source in opened)
        for found in others:
            assert_equal(found, reference)


@pytest.mark.parametrize("num_captions", [1, 2])
def test_every_kind_streams_the_same_batches(num_captions, drawn, small_processor, tmp_path):
    """With several captions, where a row holds one, a stream's samples are rows; the others agree all the same."""
    drawn = [type(sample)(sample | {"captions": sample["captions"][:num_captions]}) for sample in drawn]
    reference = None
    for kind in SHARDED_KINDS:
        source = open_source(write_source(kind, tmp_path / kind, drawn, num_shards=3), streaming=True)
        if num_captions > 1 and kind in {"csv", "tsv"}:
            assert len(source) == 80
            continue
        found = batches(source, small_processor)
        reference = reference or found
        assert_equal(found, reference)


def test_a_stream_gives_no_two_captions_of_an_image_to_a_batch(drawn, small_processor, tmp_path):
    source = open_source(write_source("csv", tmp_path / "csv", drawn, num_shards=3), streaming=True)
    for batch in batches(source, small_processor, batch_size=30):
        assert len(set(batch["sample_ids"])) == 30


def test_an_example_has_all_captions(drawn, tmp_path):
    for kind in KINDS:
        source = open_source(write_source(kind, tmp_path / kind, drawn))
        assert [source[index]["captions"] for index in (0, 7)] == [drawn[index]["captions"] for index in (0, 7)]
        assert source[7]["sample_id"] == "07"
        if kind in {"csv", "tsv", "folder-csv"}:
            texts = [text for captions in source.all_captions() for text in captions]
            assert texts == [text for sample in drawn for text in sample["captions"]]
        else:
            assert list(source.all_captions()) == [sample["captions"] for sample in drawn]


def test_a_folder_of_shards_is_a_source(drawn, tmp_path):
    write_source("tar", tmp_path / "tars", drawn, num_shards=4)
    assert len(open_source(tmp_path / "tars")) == len(open_source(f"{tmp_path}/tars/00?.tar", streaming=True)) == 40


@pytest.mark.parametrize("streaming", [False, True])
def test_remote_files_are_the_same_as_near_ones(streaming, drawn, small_processor, tmp_path, monkeypatch):
    """fsspec's memory:// is as remote as any other URL."""
    monkeypatch.setenv("CLIP_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # else `datasets` takes every URL for the Hub's
    for kind in ("jsonl", "csv", "parquet", "tar"):
        name = write_source(kind, tmp_path / kind, drawn, num_shards=2)
        near = open_source(name, streaming=streaming)
        for shard in (tmp_path / kind).iterdir():
            fsspec.filesystem("memory").pipe_file(f"/{kind}/{shard.name}", shard.read_bytes())
        far = open_source(f"memory://{kind}/{{000..001}}.{kind}", streaming=streaming)
        assert_equal(batches(far, small_processor), batches(near, small_processor))


def test_copies_that_went_to_make_room_are_fetched_again(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_HF_CACHE", str(tmp_path / "cache"))
    for kind in ("csv", "tar"):
        write_source(kind, tmp_path / kind, drawn, num_shards=4)
        for shard in (tmp_path / kind).iterdir():
            fsspec.filesystem("memory").pipe_file(f"/room/{shard.name}", shard.read_bytes())
        source = open_source(f"memory://room/{{000..003}}.{kind}")
        for copy in (tmp_path / "cache").glob(f"*.{kind}"):
            copy.unlink()
        rows._open.cache_clear()
        assert [source.draw(index, 0, 0).sample_id for index in (0, 39)] == ["00", "39"]


def test_a_data_set_of_the_hub_is_a_source(drawn, small_processor, tmp_path, monkeypatch):
    file = write_shard("parquet", tmp_path / "pairs", drawn)
    here = open_source(file)
    expected = batches(here, small_processor)
    build, asked = datasets.load_dataset_builder, []

    def load_dataset_builder(repository, configuration):
        asked.append((repository, configuration))
        return build("parquet", data_files=dict.fromkeys(("train", "validation", "test"), str(file)))

    monkeypatch.setattr(sources, "load_dataset_builder", load_dataset_builder)
    assert_equal(batches(open_source("me/pairs"), small_processor), expected)
    assert_equal(batches(open_source("me/pairs:en:validation"), small_processor), expected)
    assert asked == [("me/pairs", None), ("me/pairs", "en")]
    assert [len(open_source(f"me/pairs:{name}")) for name in ("train[:50%]", "en:train[10:30]")] == [20, 20]
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"me/pairs.* \W?dev\W?.*train\W+validation\W+test"):
            open_source("me/pairs:dev", streaming=streaming)
    with pytest.raises(ValueError, match="me/pairs has no column 'alt'; there are image_id"):
        open_source("me/pairs", Columns(text="alt"))
    pairs = TrainingPairs([open_source("me/pairs"), here, open_source("me/pairs:test")], small_processor)
    assert pairs.repositories == ["me/pairs"]


def test_columns_may_have_other_names(drawn, tmp_path):
    rows = [
        {"photo": str(sample["file"]), "alt": "a cat", "text": "no", "number": n} for n, sample in enumerate(drawn)
    ]
    file = write_rows("jsonl", tmp_path / "pairs", rows)
    source = open_source(file, Columns(image="photo", text="alt", id="number"))
    assert source[3] == {"sample_id": "3", "image": str(drawn[3]["file"]), "captions": ["a cat"]}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", SHARDED_KINDS)
def test_a_missing_column_is_named_with_those_that_are_there(kind, streaming, drawn, tmp_path):
    name = write_source(kind, tmp_path / kind, drawn, num_shards=2)
    with pytest.raises(ValueError, match=rf"\.{kind}.* has no column 'alt'; there are .*caption"):
        open_source(name, Columns(text="alt"), streaming=streaming)


def test_every_shard_must_have_the_columns(drawn, tmp_path):
    write_rows("jsonl", tmp_path / "0", [{"image": "a.jpg", "text": "a"}])
    write_rows("jsonl", tmp_path / "1", [{"image": "a.jpg", "caption": "a"}])
    with pytest.raises(ValueError, match=r"1\.jsonl has no column 'text'; there are image, caption"):
        open_source(tmp_path / "*.jsonl")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", SHARDED_KINDS)
def test_an_empty_or_unreadable_shard_is_an_error_at_the_start(kind, streaming, drawn, tmp_path):
    name = write_source(kind, tmp_path / kind, drawn, num_shards=2)
    shard = tmp_path / kind / f"001.{kind}"
    shard.write_bytes(b"\x93\x00\xff" * 1000)
    with pytest.raises(ValueError, match=rf"001\.{kind}"):
        open_source(name, streaming=streaming)
    for file in (tmp_path / kind).iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{kind}"):
        open_source(name, streaming=streaming)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.jsonl", "there is no file missing.jsonl"),
        ("missing{0..2}.tar", "there is no file missing0.tar"),
        ("readme.md", "ends in .md. A source is a folder"),
        ("folder", "holds neither metadata nor shards: cat.jpg. A source is"),
        ("mixed", "shards of several kinds, .parquet, .tar: 0.parquet, 1.tar"),
        ("nobody/nothing", "nobody/nothing is not here, and the Hub has no such data set"),
        ("strange://somewhere", "strange"),
        ("farfs://bucket/{0..2}.tar", "farfs://bucket/.* is not to be found: .*Install farfs"),
    ],
)
def test_what_is_no_source_says_what_is_there(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fsspec.register_implementation("farfs", "farfs.FileSystem", clobber=True, errtxt="Install farfs to read farfs://")
    for file in ("readme.md", "folder/cat.jpg", "mixed/0.parquet", "mixed/1.tar"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(ValueError, match=message):
        open_source(source)


def test_damaged_data_pages_of_parquet_are_an_error_at_the_start(drawn, tmp_path):
    """`datasets` reads the whole file, so that nothing is left to be found later."""
    file = write_shard("parquet", tmp_path / "pairs", drawn)
    data = bytearray(file.read_bytes())
    data[100:300] = b"\xaa" * 200
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"pairs\.parquet"):
        open_source(file)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": "a cat"}, ["a cat"]),
        ({"captions": ["a cat", "an animal"]}, ["a cat", "an animal"]),
        ({"text": "a cat", "captions": ["a cat", "an animal"]}, ["a cat", "an animal"]),
    ],
)
def test_a_folder_gives_files_and_captions(columns, expected, tmp_path):
    lines = [json.dumps({"file_name": f"{number}.png"} | columns) for number in range(2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    examples = open_source(tmp_path)
    assert len(examples) == 2
    assert (examples[1]["image"], examples[1]["sample_id"]) == (str(tmp_path / "1.png"), "1.png")
    assert captions_of(examples[0]) == expected
    assert list(examples.all_captions()) == [expected, expected]


def test_shapes_of_evaluation_are_never_trained_on():
    training, evaluation = (open_source("shapes", split=split) for split in ("training", "evaluation"))
    assert len(training) == 64 * len(SEEN) and len(evaluation) == len(UNSEEN)
    learned = {caption for captions in training.all_captions() for caption in captions}
    assert not learned & {caption for captions in evaluation.all_captions() for caption in captions}
    assert evaluation[0]["captions"][0] not in learned
    assert sys.getsizeof(training[5]["image"]) > 0


def test_what_would_evaluate_on_training_data_is_refused(drawn, tmp_path):
    for split in ("train", "validation"):
        write_source("folder", tmp_path / "set" / split, drawn[:2])
    with pytest.raises(ValueError, match=r"several sources, train, validation: name one, as in .*set/train"):
        open_source(tmp_path / "set")
    with pytest.raises(ValueError, match="name the split to evaluate, as in me/pairs:validation"):
        open_source("me/pairs", split="evaluation")


def test_a_line_separator_inside_a_caption_stays(tmp_path):
    (tmp_path / "pairs.csv").write_text('image,caption\na.jpg,a red\u2028bus\nb.jpg,"a\nb"\n', encoding="utf-8")
    assert [list(texts) for texts in open_source(str(tmp_path / "pairs.csv")).all_captions()] == [
        ["a red\u2028bus"],
        ["a\nb"],
    ]


def test_paths_are_those_that_a_shell_takes(drawn, tmp_path, monkeypatch):
    """A home folder, brackets in names, capital letters, several folders."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder, half in (("one [v2]", drawn[:20]), ("two", drawn[20:])):
        write_source("folder", tmp_path / folder, half)
        for kind in ("csv", "parquet", "tar"):
            write_shard(kind, tmp_path / folder / "pairs", half)
    (tmp_path / "two" / "metadata.jsonl").rename(tmp_path / "two" / "Metadata.JSONL")
    (tmp_path / "two" / "pairs.tar").rename(tmp_path / "two" / "PAIRS.TAR")
    for name in ("~/one [v2]", "~/one [v2]/pairs.csv", "~/one [v2]/pairs.parquet", "~/two/PAIRS.TAR", "~/two"):
        assert len(open_source(name)) == 20, name
    source = open_source("~/{one [v2],two}")
    assert [source[index]["image"] for index in (0, 39)] == [
        str(tmp_path / "one [v2]" / "00.jpg"),
        str(tmp_path / "two" / "39.jpg"),
    ]
    assert len(open_source("~/*/[Mm]etadata.*", streaming=True)) == 40


def test_images_of_one_name_in_several_folders_are_several(drawn, tmp_path):
    for number in range(3):
        write_source("folder", tmp_path / str(number), drawn[number : number + 1])
        (tmp_path / str(number) / f"{number:02}.jpg").rename(tmp_path / str(number) / "a.jpg")
        (tmp_path / str(number) / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "a cat"}\n')
    for streaming in (False, True):
        source = open_source(tmp_path / "{0,1,2}", streaming=streaming)
        draws = [source.draw(index, 0, 0) for index in range(3)]
        assert [draw.image for draw in draws] == [sample["file"].read_bytes() for sample in drawn[:3]]
        assert [draw.sample_id for draw in draws] == [str(tmp_path / str(number) / "a.jpg") for number in range(3)]


def test_parquet_shards_of_other_columns_are_named(drawn, tmp_path):
    write_shard("parquet", tmp_path / "0", drawn[:20])
    Dataset.from_list([{"image_id": "1", "image": b"", "caption": "a"}]).to_parquet(tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"1\.parquet has the columns image_id, image, caption, but .*0\.parquet"):
        open_source(tmp_path)


def test_folders_of_classes_are_no_stream(drawn, tmp_path):
    for name in ("cat", "dog"):
        write_source("folder", tmp_path / "set" / name, drawn[:2])
        (tmp_path / "set" / name / "metadata.jsonl").unlink()
    assert len(open_source(tmp_path / "set", Columns(text="label"))) == 4
    with pytest.raises(ValueError, match="leave out --streaming"):
        open_source(tmp_path / "set", Columns(text="label"), streaming=True)
