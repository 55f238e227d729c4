"""Folders as OpenCLIP's Hub repositories have them, with small models."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from clip_hf import ClipHfTokenizer
from tests.openai_weights import IMAGE_SIZES, POSITIONS, SHAPES, VOCAB_SIZE, openai_weights

CAPTIONS = ["a photo of a dog", "a photo of a cat", "two hot air balloons over the sea"] * 3


def small_tokenizer() -> ClipHfTokenizer:
    """Returns a tokenizer whose vocabulary is that of the small models."""
    tokenizer = ClipHfTokenizer.train(CAPTIONS, vocab_size=VOCAB_SIZE, context_length=POSITIONS)
    assert len(tokenizer) == VOCAB_SIZE
    return tokenizer


def clip_tokenizer(tokenizer: ClipHfTokenizer) -> CLIPTokenizer:
    """Returns transformers' tokenizer of the same vocabulary."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=tokenizer.model_max_length)


def open_clip_config(tower: str, **fields: Any) -> dict[str, Any]:
    """Returns an open_clip_config.json for `openai_weights`."""
    shape = SHAPES[tower]
    vision = {"image_size": IMAGE_SIZES[tower], "width": shape["width"]}
    vision |= (
        {"layers": shape["layers"], "patch_size": shape["patch_size"]}
        if tower == "vit"
        else {"layers": list(shape["depths"]), "patch_size": None}
    )
    text = {"context_length": POSITIONS, "vocab_size": VOCAB_SIZE, "width": 64, "heads": 1, "layers": 2}
    model = {"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    preprocessing = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}
    return {"model_cfg": model | fields, "preprocess_cfg": preprocessing}


def plain_weights(tower: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Returns `openai_weights` without the three numbers, as OpenCLIP saves them."""
    numbers = ("input_resolution", "context_length", "vocab_size")
    weights = {name: tensor for name, tensor in openai_weights(tower).items() if name not in numbers}
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def custom_text(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights in OpenCLIP's layout for models whose text tower has a class of its own."""
    return {
        name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": tensor
        for name, tensor in weights.items()
    }


def write_open_clip_folder(
    folder: Path, tower: str = "vit", weights: dict[str, Tensor] | None = None, pickled: bool = False, **fields: Any
) -> Path:
    """Writes a folder with configuration, weights and tokenizer."""
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(tower, **fields)), encoding="utf-8")
    weights = plain_weights(tower) if weights is None else weights
    if pickled:
        torch.save(weights, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(weights, folder / "open_clip_model.safetensors")
    clip_tokenizer(small_tokenizer()).save_pretrained(folder)
    return folder
