import json
import sys

import numpy as np
import pytest
from PIL import Image
from transformers.utils import logging

from clip_hf.data.dry_run import dry_run
from clip_hf.data.sources import open_source
from clip_hf.data.training_pairs import TrainingPairs
from tests.data.source_kinds import write_source


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dry_run_tells_what_training_would_read(streaming, drawn, small_processor, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    samples = [*drawn[:39], type(drawn[0])(drawn[39] | {"file": broken})]
    source = open_source(write_source("tar", tmp_path / "tar", samples), streaming=streaming)
    pairs = TrainingPairs([source], small_processor, broken_list=tmp_path / "broken_samples.jsonl")
    report = dry_run(pairs, 60, tmp_path / "out", batch_size=10)
    assert json.loads(json.dumps(report)) == report
    assert (
        report["workers"] == 0
        and report["samples"] == 60
        and report["samples_in_an_epoch"] == 40
        and report["batches_in_an_epoch"] == 4
    )
    assert report["samples_per_second"] > 1 and report["broken"] == {source.name: len(listed(tmp_path))}
    sides = [min(Image.open(sample["file"]).size) for sample in drawn[:39]]
    assert report["image_shorter_side"]["median"] == np.median(sides)
    lengths = {len(ids) for sample in drawn for ids in small_processor.tokenizer(sample["captions"])["input_ids"]}
    tokens = report["caption_tokens"]
    assert min(lengths) <= tokens["least"] <= tokens["median"] <= tokens["greatest"] <= max(lengths)
    assert report["sheet"] == str(tmp_path / "out" / "samples.png")
    with Image.open(report["sheet"]) as sheet:
        assert min(sheet.size) > 1000 and len(set(sheet.convert("L").resize((60, 60)).tobytes())) > 20


@pytest.fixture
def warnings_of_transformers(caplog):
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


@pytest.mark.parametrize("batch_size", [40, 64])
def test_a_set_smaller_than_a_batch_is_read_and_the_way_out_told(
    batch_size, drawn, small_processor, tmp_path, warnings_of_transformers
):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    samples = [*drawn[:39], type(drawn[0])(drawn[39] | {"file": broken})]
    pairs = TrainingPairs([open_source(write_source("tar", tmp_path / "tar", samples))], small_processor)
    report = dry_run(pairs, 30, tmp_path, batch_size, num_workers=1)
    assert report["samples"] >= 30 and report["batches_in_an_epoch"] == (batch_size == 40) and report["workers"] == 1
    told = "lower global_batch_size to at most 40" in warnings_of_transformers.text
    assert told == (batch_size > 40)


def listed(folder) -> list[str]:
    return (folder / "broken_samples.jsonl").read_text().splitlines()


def test_without_matplotlib_the_report_is_whole(small_processor, tmp_path, monkeypatch):
    pairs = TrainingPairs([open_source("shapes")], small_processor)
    with_sheet = dry_run(pairs, 30, tmp_path, batch_size=30)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    report = dry_run(pairs, 30, tmp_path / "none", batch_size=30)
    assert "pip install matplotlib" in report["sheet"] and not list((tmp_path / "none").iterdir())
    assert report.keys() == with_sheet.keys() and report["caption_tokens"] == with_sheet["caption_tokens"]


def test_shapes_need_no_files(small_processor, tmp_path):
    report = dry_run(TrainingPairs([open_source("shapes")], small_processor), 30, tmp_path, batch_size=30)
    assert report["image_shorter_side"]["least"] == 64 and report["broken"] == {"shapes": 0}
