"""A model with its processor, and images with captions and classes on disk: what the tests of evaluation share."""

import json
import runpy
import sys

import pytest
import torch
from PIL import Image
from transformers import AutoModel, SiglipConfig, SiglipModel

from clip_hf.data.columns import Columns
from clip_hf.data.sources import open_source
from clip_hf.evaluation.embedding import Embedder
from clip_hf.evaluation.features import FeatureCache
from clip_hf.model.tokenization_clip_hf import ClipHfTokenizer
from tests.model.tiny_zero_shot import (
    CONTEXT_LENGTH,
    tiny_image_processor,
    tiny_tokenizer,
    tiny_transformers_model,
    tiny_zero_shot_model,
)

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def tiny_siglip() -> SiglipModel:
    text = {"vocab_size": len(tiny_tokenizer()), "max_position_embeddings": CONTEXT_LENGTH, "hidden_size": 32}
    sizes = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 32}
    torch.manual_seed(0)
    return SiglipModel(SiglipConfig(text_config=text | sizes, vision_config=vision | sizes)).eval()


MODELS = {
    "clip_hf": lambda: tiny_zero_shot_model("vit"),
    "clip_hf_resnet": lambda: tiny_zero_shot_model("resnet"),
    "clip": tiny_transformers_model,
    "siglip": tiny_siglip,
}


def save_checkpoint(kind, folder):
    model = MODELS[kind]()
    for part in (model, tiny_tokenizer(), tiny_image_processor(model)):
        part.save_pretrained(folder)
    return folder


def write_photos(folder, number=12, size=40):
    """Writes coloured noise with 0 to 4 captions and a class each; one file in ten is cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    lines = []
    for index in range(number):
        name = list(COLOURS)[index % len(COLOURS)]
        noise = torch.randint(-30, 31, (size, size + index % 5, 3), generator=generator)
        pixels = (torch.tensor(COLOURS[name]) + noise).clamp(0, 255).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index:02d}.png")
        captions = [f"{name} noise {index} seen {turn}" for turn in range((index + 1) % 5)]
        lines.append({"file_name": f"{index:02d}.png", "captions": captions, "label_name": name, "label": index % 3})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def open_photos(folder, text_column="captions"):
    return open_source(folder, Columns(text=text_column))


def open_cache(checkpoint, folder, batch_size=4):
    model = AutoModel.from_pretrained(checkpoint)
    tokenizer = ClipHfTokenizer.from_pretrained(checkpoint)
    return FeatureCache(Embedder(model, tiny_image_processor(model), tokenizer, batch_size), folder)


def run_script(script, *arguments):
    """Runs a script in this process: one of its own would spend its seconds on importing torch once more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(script, run_name="__main__")
