"""One model, and one tokenizer, three times: ours, OpenCLIP's and transformers'."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from clip_hf import ClipHfConfig, ClipHfModel, ClipHfTokenizer
from clip_hf.conversion.foreign_configs import to_transformers_config
from clip_hf.conversion.layouts import to_layout

# OpenCLIP, whose own tokenizer has no threads, switches off those of all others as it is imported.
os.environ.pop("TOKENIZERS_PARALLELISM", None)

OPEN_CLIP_NAMES = {"RN50": "RN50", "ViT-B/32": "ViT-B-32", "ViT-B/16": "ViT-B-16", "ViT-L/14": "ViT-L-14"}


class Models(NamedTuple):
    """The three; transformers has no ResNets."""

    clip_hf: ClipHfModel
    open_clip: nn.Module
    transformers: CLIPModel | None


def build_models(architecture: str, device: str = "cpu", dtype: str = "float32") -> Models:
    """Returns the three with the same random weights, in evaluation mode.

    Args:
        architecture: one of `OPEN_CLIP_NAMES`.
        device: of the weights.
        dtype: of the weights.
    """
    torch.manual_seed(0)
    theirs = open_clip.create_model(OPEN_CLIP_NAMES[architecture], pretrained=None, force_quick_gelu=True).eval()
    config = ClipHfConfig.from_architecture(architecture)
    ours = ClipHfModel.from_pretrained(None, config=config, state_dict=theirs.state_dict()).eval()
    stock = _as_transformers(ours) if architecture.startswith("ViT") else None
    return Models(*(model and model.to(device, getattr(torch, dtype)) for model in (ours, theirs, stock)))


def _as_transformers(model: ClipHfModel) -> CLIPModel:
    theirs = CLIPModel(to_transformers_config(model.config)).eval()
    missing = theirs.load_state_dict(to_layout(model.state_dict(), "transformers", model.config), strict=False)
    if missing.missing_keys or missing.unexpected_keys:
        raise RuntimeError(f"the weights do not fit transformers' model: {missing}")
    return theirs


class Tokenizers(NamedTuple):
    """The three, with the released vocabulary."""

    clip_hf: ClipHfTokenizer
    open_clip: Callable[[list[str]], Tensor]
    transformers: CLIPTokenizer


def build_tokenizers() -> Tokenizers:
    """Returns the three; the vocabulary is the file that OpenCLIP brings along."""
    ours = ClipHfTokenizer.from_openai_bpe(Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz"))
    bpe = json.loads(ours.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in bpe["merges"]]
    theirs = CLIPTokenizer(vocab=bpe["vocab"], merges=merges, model_max_length=ours.model_max_length)
    return Tokenizers(ours, open_clip.get_tokenizer("ViT-B-32"), theirs)
