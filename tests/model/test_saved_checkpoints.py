"""Checkpoints that version 0.1.0 saved, in format 1: every later version opens them, and they answer as they did."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

import clip_hf  # noqa: F401  registers the classes
from tests.tiny_models import TOWERS

FOLDER = Path(__file__).with_name("saved_checkpoints")
LABELS = ["a dog", "a cat", "hot air balloons", "THE END &amp; café"]


@pytest.mark.parametrize("tower", TOWERS)
def test_a_checkpoint_of_format_1_answers_as_when_it_was_saved(tower):
    expected = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))[tower]
    image = Image.linear_gradient("L").convert("RGB")
    processor, model = (auto.from_pretrained(FOLDER / tower) for auto in (AutoProcessor, AutoModel))
    inputs = processor(images=[image, image.rotate(90)], text=LABELS, padding=True, return_tensors="pt")
    assert inputs["input_ids"].tolist() == expected["input_ids"]
    with torch.no_grad():
        logits = model.eval()(**inputs).logits_per_image
    torch.testing.assert_close(logits, torch.tensor(expected["logits_per_image"]), rtol=0, atol=1e-4)
