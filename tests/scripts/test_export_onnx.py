import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from clip_hf import ClipHfImageProcessor, ClipHfProcessor
from scripts.export_onnx import ExportArguments, main
from tests.model.tiny_zero_shot import (
    CONTEXT_LENGTH,
    pictures,
    tiny_image_processor,
    tiny_tokenizer,
    tiny_zero_shot_model,
)
from tests.tiny_models import TOWERS, tiny_model

TEXTS = ["a dog", "a photo of two cats"]


def export_and_run_what_is_printed(tower, part, tmp_path, monkeypatch, capsys, saved="model", **options):
    """Returns the model, its processor, and what is defined once the printed code has run beside a photo."""
    pytest.importorskip("onnxruntime")
    model = tiny_zero_shot_model(tower)
    processor = ClipHfProcessor(tiny_image_processor(model), tiny_tokenizer())
    as_saved = ClipHfImageProcessor(**processor.image_processor.to_dict() | options)
    for piece in (model if saved == "model" else getattr(model, saved), ClipHfProcessor(as_saved, tiny_tokenizer())):
        piece.save_pretrained(tmp_path / "model")
    main(ExportArguments(model=str(tmp_path / "model"), output_dir=tmp_path / "onnx", part=part))
    printed = capsys.readouterr().out
    assert "has no" not in printed
    pictures(1)[0].save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    defined: dict = {}
    exec(printed.partition("To use it:\n")[2], defined)
    return model, processor, defined


@pytest.mark.parametrize(
    ("tower", "part"),
    [
        pytest.param(tower, part, marks=[] if (tower, part) == ("vit", "joint") else [pytest.mark.slow])
        for tower in TOWERS
        for part in ("joint", "image", "text")
    ],
)
def test_what_is_printed_embeds_as_the_model_does(tower, part, tmp_path, monkeypatch, capsys):
    assert_embeds_alike(part, *export_and_run_what_is_printed(tower, part, tmp_path, monkeypatch, capsys))


@pytest.mark.parametrize("part", ["joint", pytest.param("image", marks=pytest.mark.slow)])
def test_a_processor_that_leaves_pixels_raw_is_saved_as_one_that_normalises(part, tmp_path, monkeypatch, capsys):
    raw = {"do_rescale": False, "do_normalize": False, "image_mean": [0.1] * 3}  # the model's numbers count
    exported = export_and_run_what_is_printed("vit", part, tmp_path, monkeypatch, capsys, **raw)
    assert_embeds_alike(part, *exported)


@pytest.mark.parametrize(
    ("tower", "part", "saved"),
    [
        ("vit", "text", "text_model"),
        ("vit", "image", "vision_model"),
        pytest.param("resnet", "image", "vision_model", marks=pytest.mark.slow),
    ],
)
def test_the_checkpoint_of_a_tower_is_exported_as_it_is(tower, part, saved, tmp_path, monkeypatch, capsys):
    assert_embeds_alike(part, *export_and_run_what_is_printed(tower, part, tmp_path, monkeypatch, capsys, saved))


def assert_embeds_alike(part, model, processor, defined):
    inputs = processor(images="photo.jpg", text=TEXTS, padding=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] < CONTEXT_LENGTH
    with torch.no_grad():
        image, texts = model.vision_model(inputs["pixel_values"]), model.text_model(inputs["input_ids"])
    expected = {"image_embeds": image.image_embeds, "text_embeds": texts.text_embeds}
    if part == "joint":
        expected = {name: torch.nn.functional.normalize(embeds) for name, embeds in expected.items()}
    expected = {name: embeds for name, embeds in expected.items() if part in ("joint", name.removesuffix("_embeds"))}
    assert {name for name in defined if name.endswith("_embeds")} == expected.keys()
    for name, embeds in expected.items():
        np.testing.assert_allclose(defined[name], embeds, atol=1e-4)


def test_a_checkpoint_without_a_processor_is_exported_all_the_same(tmp_path):
    pytest.importorskip("onnxruntime")
    tiny_model("vit").save_pretrained(tmp_path / "model")
    command = [sys.executable, "scripts/export_onnx.py", "--model", tmp_path / "model", "--part", "text"]
    run = subprocess.run([*command, "--output_dir", tmp_path / "onnx"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"{tmp_path / 'model'} has no ClipHfTokenizer, so save one in {tmp_path / 'onnx'}: " in run.stdout
    assert f'InferenceSession("{tmp_path / "onnx" / "model.onnx"}")' in run.stdout
    assert json.loads((tmp_path / "onnx" / "config.json").read_text())["model_type"] == "clip_hf_text"


@pytest.mark.parametrize("part", ["joint", "image"])
def test_what_the_checkpoint_of_a_tower_lacks_is_said(part, tmp_path):
    tiny_model("vit").text_model.save_pretrained(tmp_path / "tower")
    message = rf"tower is a ClipHfTextModel, which has no --part {part}: export its --part text"
    with pytest.raises(SystemExit, match=message):
        main(ExportArguments(model=str(tmp_path / "tower"), output_dir=tmp_path / "onnx", part=part))


@pytest.mark.parametrize("part", ["joint", "image", "text"])
def test_a_model_of_another_kind_is_refused(part, tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=9, **sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises(SystemExit, match=f"bert is a BertModel, which has no --part {part}: export a CLIP"):
        main(ExportArguments(model=str(tmp_path / "bert"), output_dir=tmp_path / "onnx", part=part))


def test_a_folder_that_cannot_be_made_is_told_before_the_export(tmp_path):
    tiny_model("vit").save_pretrained(tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"File exists: .*file"):
        main(ExportArguments(model=str(tmp_path / "model"), output_dir=tmp_path / "file"))


def test_a_model_that_is_not_there_is_a_line(tmp_path):
    with pytest.raises(SystemExit, match=r"model is .*nope, which does not open: "):
        main(ExportArguments(model=str(tmp_path / "nope"), output_dir=tmp_path / "onnx"))
    tiny_model("vit").save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])
    with pytest.raises(SystemExit, match=r"model is .*cut, which does not open: .* is damaged"):
        main(ExportArguments(model=str(tmp_path / "cut"), output_dir=tmp_path / "onnx"))
