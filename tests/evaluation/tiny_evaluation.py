"""A model with its processor, and images with captions and classes on disk: what the tests of evaluation share."""

import json
import runpy
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer, SiglipConfig, SiglipModel, SiglipTokenizer

from clip_hf.data.columns import Columns
from clip_hf.data.sources import open_source
from clip_hf.evaluation.embedding import Embedder
from clip_hf.evaluation.features import FeatureCache
from tests.model.tiny_zero_shot import (
    CONTEXT_LENGTH,
    NAMES,
    TEMPLATES,
    tiny_image_processor,
    tiny_tokenizer,
    tiny_transformers_model,
    tiny_zero_shot_model,
)

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


@cache
def tiny_siglip_tokenizer() -> SiglipTokenizer:
    """Of SentencePiece, as Google's checkpoints have it: no `tokenizers` library behind it."""
    options = {"pad_id": 2, "eos_id": 1, "unk_id": 0, "bos_id": -1, "pad_piece": "<pad>", "minloglevel": 2}
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder, "texts.txt")
        texts.write_text("\n".join([*NAMES, *TEMPLATES, *COLOURS, "noise 0123456789 seen"] * 20))
        sentencepiece.SentencePieceTrainer.train(
            input=str(texts), model_prefix=f"{folder}/spiece", vocab_size=90, hard_vocab_limit=False, **options
        )
        return SiglipTokenizer(f"{folder}/spiece.model", model_max_length=CONTEXT_LENGTH)


def tiny_siglip() -> SiglipModel:
    text = {"vocab_size": len(tiny_siglip_tokenizer()), "max_position_embeddings": CONTEXT_LENGTH, "hidden_size": 32}
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


def tokenizer_of(kind):
    return tiny_siglip_tokenizer() if kind == "siglip" else tiny_tokenizer()


def save_checkpoint(kind, folder):
    model = MODELS[kind]()
    for part in (model, tokenizer_of(kind), tiny_image_processor(model)):
        part.save_pretrained(folder)
    return folder


def write_photos(folder, number=12, size=40):
    """Writes coloured noise with 0 to 4 captions and a class each."""
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
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return FeatureCache(Embedder(model, tiny_image_processor(model), tokenizer, batch_size), folder)


def run_script(script, *arguments):
    """Runs a script in this process: one of its own would spend its seconds on importing torch once more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(script, run_name="__main__")
