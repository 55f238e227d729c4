"""scripts/evaluate_retrieval.py on real files: equal to a plain computation, whatever the model and the processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

from clip_hf.evaluation.setup import EvenlySpread
from tests.evaluation.test_retrieval import brute_force
from tests.evaluation.tiny_evaluation import MODELS, run_script, save_checkpoint, tokenizer_of, write_photos
from tests.model.tiny_zero_shot import tiny_image_processor

SCRIPT = "scripts/evaluate_retrieval.py"


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request, tmp_path_factory):
    return save_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def photos(tmp_path):
    folder = write_photos(tmp_path / "photos")
    (folder / "03.png").write_bytes(b"no image")
    return folder


def options(checkpoint, photos, folder):
    return ["--model", checkpoint, "--data", photos, "--output_dir", folder, "--cache_dir", folder / "cache"]


def results(folder):
    return json.loads((folder / "results.json").read_text())


def cached_features(folder, modality):
    (file,) = folder.glob(f"{modality}-*.safetensors")
    return load_file(file)["features"]


def test_figures_equal_a_plain_computation(checkpoint, photos, tmp_path, capsys):
    run_script(SCRIPT, *options(checkpoint, photos, tmp_path / "out"), "--num_workers", 0)
    found = results(tmp_path / "out")
    lines = [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]
    whole = [line for number, line in enumerate(lines) if line["captions"] and number != 3]
    model = AutoModel.from_pretrained(checkpoint).eval()
    padding = "max_length" if model.config.model_type == "siglip" else True
    files = [str(photos / line["file_name"]) for line in whole]
    captions = [caption for line in whole for caption in line["captions"]]
    input_ids = tokenizer_of(model.config.model_type)(captions, padding=padding, max_length=24, return_tensors="pt")[
        "input_ids"
    ]
    with torch.no_grad():
        pixels = tiny_image_processor(model)(files, return_tensors="pt")["pixel_values"]
        images, texts = model.get_image_features(pixels), model.get_text_features(input_ids)
    # Ranks are compared on the script's own embeddings: those of an untrained model are so alike that rounding, which
    # depends on the processor and on the batch, puts them in another order.
    has_captions = [bool(line["captions"]) for number, line in enumerate(lines) if number != 3]
    embeds = [cached_features(tmp_path / "out" / "cache", "image")[has_captions]]
    embeds.append(cached_features(tmp_path / "out" / "cache", "text"))
    for own, output in zip(embeds, (images, texts), strict=True):
        plain = torch.nn.functional.normalize(output.pooler_output, dim=1)
        assert torch.allclose(own, plain, rtol=0, atol=1e-5)
    image_of_text = torch.arange(len(whole)).repeat_interleave(torch.tensor([len(line["captions"]) for line in whole]))
    assert found["metrics"] == pytest.approx(brute_force(*embeds, image_of_text), abs=1e-6)
    bare = [line["file_name"] for line in lines if not line["captions"]]
    assert (found["num_images"], found["num_broken"], found["num_without_text"]) == (len(whole), 1, len(bare))
    assert found["num_texts"] == sum(len(line["captions"]) for line in whole)
    printed = capsys.readouterr().out
    assert f"{len(whole)} images; 1 more could not be read, the first: 03.png" in printed
    assert f"; {len(bare)} more have no caption or label, the first: {bare[0]}" in printed
    assert f"{found['metrics']['image_retrieval_recall@5']:.2%}" in printed
    with Image.open(tmp_path / "out" / "queries.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 10


def test_batches_change_no_figure_by_more_than_rounding_and_a_second_run_none(photos, tmp_path):
    checkpoint = save_checkpoint("clip_hf", tmp_path / "model")
    common = options(checkpoint, photos, tmp_path / "out")
    tables = []
    for folder, batch_size in {"one": 64, "two": 2, "three": 2}.items():
        cache = tmp_path / ("other" if folder == "one" else "cache")
        extra = ["--output_dir", tmp_path / folder, "--cache_dir", cache, "--batch_size", batch_size]
        run_script(SCRIPT, *common, *extra, "--num_workers", 0, "--num_queries", 1)
        tables.append(results(tmp_path / folder)["metrics"])
    assert tables[0] == pytest.approx(tables[1], abs=0.5)  # ranks of near ties: features differ in their last bits
    assert tables[1] == tables[2]


def test_a_limit_draws_images_from_everywhere(photos, tmp_path):
    checkpoint = save_checkpoint("clip_hf", tmp_path / "model")
    run_script(SCRIPT, *options(checkpoint, photos, tmp_path / "out"), "--num_workers", 0, "--limit", 4)
    found = results(tmp_path / "out")
    assert found["num_images"] + found["num_broken"] + found["num_without_text"] == 4
    places = EvenlySpread(range(1200), 400).places
    assert [place // 3 for place in places] == list(range(400))  # one of each three
    assert {place % 3 for place in places} == {0, 1, 2}  # data that repeats itself is not seen at one place alone


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--limit", "0"], "limit is 0, but must be at least 1"),
        (["--num_queries", "0"], "num_queries is 0, but must be at least 1"),
        (["--text_column", "none"], "no column 'none'; there are file_name, captions, label_name, label"),
        (["--data", "no/such/folder.jsonl"], "no/such/folder.jsonl is not to be found"),
        (["--device", "gpu"], "device is gpu, which cannot be used: "),
        ([], "model is no/model, which does not open: "),
    ],
)
def test_mistakes_are_one_clear_line(extra, message, photos, tmp_path):
    with pytest.raises(SystemExit) as end:
        run_script(SCRIPT, *options("no/model", photos, tmp_path / "out"), *extra)
    assert str(end.value).startswith("evaluate_retrieval.py: ") and message in str(end.value)


@pytest.mark.slow
def test_two_processes_write_the_same_figures(photos, tmp_path):
    checkpoint = save_checkpoint("clip_hf", tmp_path / "model")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    for folder, command in {"one": (sys.executable,), "two": launcher}.items():
        arguments = map(str, options(checkpoint, photos, tmp_path / folder))
        run = subprocess.run([*command, SCRIPT, *arguments], capture_output=True, text=True, env=os.environ)
        assert run.returncode == 0, run.stderr
    assert results(tmp_path / "one")["metrics"] == results(tmp_path / "two")["metrics"]
