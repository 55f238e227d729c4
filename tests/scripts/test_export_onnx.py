import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.tiny_models import random_ids, tiny_model


def test_script_exports_and_its_three_lines_work(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tiny_model("vit").eval()
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, "scripts/export_onnx.py", "--model", tmp_path / "model", "--part", "text"]
    run = subprocess.run([*command, "--output_dir", tmp_path / "onnx"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f'InferenceSession("{tmp_path / "onnx" / "model.onnx"}")' in run.stdout
    assert json.loads((tmp_path / "onnx" / "config.json").read_text())["model_type"] == "clip_hf_text"
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    ids = random_ids(model.config, batch_size=3)
    (text_embeds,) = session.run(["text_embeds"], {"input_ids": ids.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(text_embeds, model.text_model(ids).text_embeds, atol=1e-4)
