"""Repositories that we push, opened by OpenCLIP as their pages say, on the tests' own Hub."""

import json
import re

import pytest
import torch
from PIL import Image

from clip_hf import ClipHfModel, ClipHfProcessor
from clip_hf.conversion.writing import write_checkpoint
from clip_hf.hub.files import collected_files
from clip_hf.hub.push import Destination, plan_push, push
from tests.conversion.tiny_checkpoints import tiny_checkpoint
from tests.hub.conftest import hub, run_python, this_process_uses_hub  # noqa: F401  fixtures
from tests.open_clip_folders import CAPTIONS
from tests.tiny_models import TOWERS

pytest.importorskip("open_clip", reason="OpenCLIP lives in the environment of `make test-peers`")
pytestmark = pytest.mark.peers

USED = """
import json
import torch
from PIL import Image
model.eval()
ids, pixels = tokenizer(captions), preprocess(Image.open(picture))[None]
with torch.no_grad():
    features = model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)
print(json.dumps([ids.tolist(), *(one.tolist() for one in features)]))
"""


@pytest.mark.parametrize("tower", TOWERS)
def test_open_clip_opens_as_the_page_says(hub, run_python, this_process_uses_hub, tower, tmp_path):  # noqa: F811
    """Model, preprocessing and a tokenizer with a vocabulary of its own, in a process without clip_hf."""
    folder, repo_id = tmp_path / "model", f"tester/{tower}"
    write_checkpoint(tiny_checkpoint(tmp_path, tower), folder, "clip_hf")
    formats = ("clip_hf", "transformers", "open_clip") if tower == "vit" else ("clip_hf", "open_clip")
    with collected_files(folder, repo_id, formats=formats) as files:
        push(plan_push(Destination(repo_id, private=True), files))
    page = hub.repository(repo_id).read("README.md").decode()
    (block,) = re.findall(r"^```python\n(import open_clip\n.*?)^```", page, re.MULTILINE | re.DOTALL)

    picture = Image.effect_mandelbrot((160, 130), (-2, -1.5, 1, 1.5), 99).convert("RGB")
    picture.save(tmp_path / "picture.png")
    inputs = f"picture, captions = {str(tmp_path / 'picture.png')!r}, {CAPTIONS!r}\n"
    ids, *found = json.loads(run_python(block + inputs + USED, hub.env, with_clip_hf=False).splitlines()[-1])

    model, processor = ClipHfModel.from_pretrained(folder, dtype="float32"), ClipHfProcessor.from_pretrained(folder)
    prepared = processor(images=picture, text=CAPTIONS, padding=True, return_tensors="pt")
    ends = prepared["attention_mask"].sum(dim=1).tolist()
    for row, expected, end in zip(ids, prepared["input_ids"].tolist(), ends, strict=True):
        assert row[:end] == expected[:end]
    with torch.no_grad():
        output = model(**prepared)
    for features, expected in zip(found, (output.image_embeds, output.text_embeds), strict=True):
        torch.testing.assert_close(torch.tensor(features), expected, rtol=0, atol=1e-5)
