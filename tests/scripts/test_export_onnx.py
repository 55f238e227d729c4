import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from clip_hf import ClipHfProcessor
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


def export_and_run_what_is_printed(tower, part, tmp_path, monkeypatch, capsys):
    """Returns the model, its processor, and what is defined once the printed code has run beside a photo."""
    pytest.importorskip("onnxruntime")
    model = tiny_zero_shot_model(tower)
    processor = ClipHfProcessor(tiny_image_processor(model), tiny_tokenizer())
    for piece in (model, processor):
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
    model, processor, defined = export_and_run_what_is_printed(tower, part, tmp_path, monkeypatch, capsys)
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
