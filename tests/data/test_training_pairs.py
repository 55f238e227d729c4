import io
import json
import pickle
import re
import shutil
import tarfile

import pytest
import torch
from datasets import Dataset, Features, Image, Value

from clip_hf.data.augmentation import Augmentation
from clip_hf.data.loader import BrokenPair, Pair
from clip_hf.data.sources import open_source
from clip_hf.data.training_pairs import TrainingPairs
from tests.data.source_kinds import KINDS, Original, write_rows, write_source


@pytest.fixture
def make(drawn, small_processor, tmp_path):
    """Makes pairs of the drawn samples."""

    def make(kind="jsonl", streaming=False, **options) -> TrainingPairs:
        folder = tmp_path / f"{kind}-{streaming}"
        name = write_source(kind, folder, drawn, 1) if not folder.exists() else str(folder / f"000.{kind}")
        return TrainingPairs([open_source(name, streaming=streaming)], small_processor, **options)

    return make


def equal(pair, other) -> bool:
    return torch.equal(pair.pixel_values, other.pixel_values) and pair[3:] == other[3:] and pair[:2] == other[:2]


def test_captions_and_crops_depend_on_seed_epoch_and_sample_alone(make):
    def draws(seed, epoch, **options) -> dict:
        pairs = make(seed=seed, **options)
        found = [pairs.prepare(epoch, position) for position in range(40)]
        return {pair.sample_id: pair for pair in found}

    first = draws(0, 0)
    for name, pair in draws(0, 0, streaming=True, window=7, num_lanes=3).items():
        assert equal(pair, first[name]), "another order gives the same sample the same crop and caption"
    for other in (draws(1, 0), draws(0, 1)):
        assert 8 < sum(other[name].text != pair.text for name, pair in first.items()) < 32
        changed = sum(not torch.equal(other[name].pixel_values, pair.pixel_values) for name, pair in first.items())
        assert changed > 20


def test_every_caption_comes_about_equally_often(make, drawn):
    pairs = make()
    counts: dict[str, int] = {}
    for epoch in range(40):
        for position in range(40):
            text = pairs.prepare(epoch, position).text
            counts[text] = counts.get(text, 0) + 1
    for sample in drawn:
        expected = 40 / len(sample["captions"])
        assert all(abs(counts[text] - expected) < 15 for text in sample["captions"])


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar"])
def test_pairs_can_be_sent_to_another_process(kind, make):
    for streaming in (False, True):
        pairs = make(kind, streaming)
        expected = [pairs.prepare(0, position) for position in range(5)]
        received = pickle.loads(pickle.dumps(pairs))
        assert all(equal(received.prepare(0, position), expected[position]) for position in range(5))


def test_augmentation_is_used(make):
    plain, flipped = make().prepare(0, 0), make(augmentation=Augmentation(flip_probability=1)).prepare(0, 0)
    assert torch.equal(plain.pixel_values.flip(-1), flipped.pixel_values)


def test_sources_are_one_after_the_other_or_weighted(drawn, small_processor, tmp_path):
    sources = [
        open_source(write_source("tar", tmp_path / str(number), drawn[20 * number : 20 * number + 20]))
        for number in range(2)
    ]
    pairs = TrainingPairs(sources, small_processor)
    results = [pairs.prepare(0, position) for position in range(40)]
    assert sorted(pair.sample_id for pair in results) == [sample["image_id"] for sample in drawn]
    assert all(pair.source == int(pair.sample_id) // 20 for pair in results)
    weighted = TrainingPairs(sources, small_processor, weights=[9, 1])
    assert sum(weighted.prepare(0, position).source for position in range(40)) < 12
    assert len(weighted) == len(pairs) == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": 0}, "the sources must be at least one, and all of them streams or none"),
        ({"num_lanes": 0}, "num_lanes is 0"),
        ({"window": 0}, "window 0"),
        ({"weights": [1, 2]}, r"the weights are \[1, 2\], but must be 1 finite numbers"),
    ],
)
def test_impossible_options_are_named(options, message, make, small_processor):
    sources = make().sources[: options.pop("sources", 1)]
    with pytest.raises(ValueError, match=message):
        TrainingPairs(sources, small_processor, **options)


def test_streams_and_others_do_not_mix(make, small_processor):
    sources = make().sources + make(streaming=True).sources
    with pytest.raises(ValueError, match="all of them streams or none"):
        TrainingPairs(sources, small_processor)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"caption": ""}, "a.jpg: the caption is empty"),
        ({"caption": "  \n"}, "a.jpg: the caption is empty"),
        ({"caption": []}, "a.jpg: the caption is empty"),
        ({"caption": None}, "a.jpg: the caption is empty"),
        ({"caption": 5}, "a.jpg: the caption is 5, not a text"),
        ({"caption": ["a", 5]}, r"a.jpg: the caption is \['a', 5\], not a text"),
        ({}, "row 1: it has no caption"),
        ({"caption": "a", "image": "missing.jpg"}, "No such file.*missing.jpg"),
        ({"caption": "a", "image": None}, "there is no image"),
        ({"caption": "a", "image": ""}, "there is no image"),
        ({"caption": "a", "image": "http://localhost:1/x.jpg"}, "x.jpg"),
        ({"caption": "a", "image": 7}, "there is no image, but 7"),
    ],
)
def test_a_row_that_is_broken_says_why(row, reason, small_processor, tmp_path, drawn, monkeypatch):
    monkeypatch.setattr("clip_hf.data.files.RETRY_SECONDS", (0,))
    shutil.copy(drawn[0]["file"], tmp_path / "a.jpg")
    file = write_rows("jsonl", tmp_path / "a", [{"image": "a.jpg", "caption": "good"}, {"image": "a.jpg"} | row])
    pairs = TrainingPairs([open_source(file, streaming=True)], small_processor)
    results = [pairs.prepare(0, position) for position in range(2)]
    (whole,) = (result for result in results if isinstance(result, Pair))
    (broken,) = (result for result in results if isinstance(result, BrokenPair))
    assert whole.text == "good" and whole.sample_id == "a.jpg"
    assert re.search(reason, broken.reason), broken.reason


@pytest.fixture(scope="module")
def messy(test_data, tmp_path_factory) -> tuple[list[Original], set[str]]:
    """Odd and broken files, each under a name that says nothing, and the ids of those that are to be errors."""
    folder = tmp_path_factory.mktemp("messy")
    lines = (test_data / "messy" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    samples, broken = [], set()
    for number, entry in enumerate(map(json.loads, lines)):
        name = f"{number:03}"
        shutil.copy(test_data / "messy" / entry["file_name"], folder / f"{name}.jpg")
        samples.append(Original(image_id=name, file=folder / f"{name}.jpg", captions=["a cat"]))
        if entry["expect"] == "error":
            broken.add(name)
    return samples, broken


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_messy_files_are_counted_in_every_kind_of_source(kind, streaming, messy, small_processor, tmp_path):
    samples, expected = messy
    source = open_source(write_source(kind, tmp_path / kind, samples), streaming=streaming)
    pairs = TrainingPairs([source], small_processor, max_broken_fraction=1, broken_list=tmp_path / "broken.jsonl")
    loader = pairs.loader(16, num_workers=2)
    whole = {id_ for batch in loader for id_ in batch["sample_ids"]}
    listed = [json.loads(line)["sample_id"] for line in (tmp_path / "broken.jsonl").read_text().splitlines()]
    assert set(listed) == expected and loader.broken.num_broken == [len(listed)]
    assert whole == {sample["image_id"] for sample in samples} - expected


def test_messy_files_are_broken_where_their_manifest_says(messy, small_processor, tmp_path):
    samples, expected = messy
    small = [sample for sample in samples if sample["file"].stat().st_size < 100_000]
    source = open_source(write_source("tar", tmp_path / "tar", small))
    pairs = TrainingPairs([source], small_processor)
    results = [pairs.prepare(0, position) for position in range(len(pairs))]
    broken = {result.sample_id for result in results if isinstance(result, BrokenPair)}
    assert broken == expected & {sample["image_id"] for sample in small}


def test_images_of_one_name_are_not_one_image(drawn, small_processor, tmp_path):
    """Two folders count from 0.jpg, and so do two shards: each image is trained on."""
    for name, samples in (("one", drawn[:8]), ("two", drawn[8:16])):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for number, sample in enumerate(samples):
                tar.add(sample["file"], f"{number}.jpg")
                text = tarfile.TarInfo(f"{number}.txt")
                text.size = 5
                tar.addfile(text, io.BytesIO(b"a cat"))
        (tmp_path / name).mkdir()
        for number, sample in enumerate(samples):
            shutil.copy(sample["file"], tmp_path / name / f"{number}.jpg")
        rows = [{"file_name": f"{number}.jpg", "captions": s["captions"]} for number, s in enumerate(samples)]
        write_rows("jsonl", tmp_path / name / "metadata", rows)
    for names, streaming in ((["one", "two"], False), (["{one,two}.tar"], True)):
        sources = [open_source(str(tmp_path / name), streaming=streaming) for name in names]
        pairs = TrainingPairs(sources, small_processor)
        (batch,) = pairs.loader(16)
        assert len({tuple(pixels.flatten().tolist()) for pixels in batch["pixel_values"]}) == 16


def test_a_broken_image_without_an_id_is_counted(drawn, small_processor, tmp_path):
    images = [sample["file"].read_bytes() for sample in drawn[:8]]
    rows = [{"image": {"bytes": data, "path": None}, "caption": "a cat"} for data in [b"no image", *images]]
    dataset = Dataset.from_list(rows, features=Features({"image": Image(), "caption": Value("string")}))
    dataset.to_parquet(tmp_path / "pairs.parquet")
    loader = TrainingPairs([open_source(str(tmp_path / "pairs.parquet"))], small_processor).loader(8)
    for _ in range(2):
        (batch,) = loader
        assert len(batch["sample_ids"]) == 8
    assert sum(loader.broken.num_broken) >= 1
