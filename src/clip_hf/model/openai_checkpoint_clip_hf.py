"""OpenAI's .pt files: their tensors, and the architecture that the tensors' shapes tell.

A file is a TorchScript archive, as released, or a pickled state dict. Names and shapes: openai/CLIP
clip/model.py:399-436@d05afc4, where heads are 64 wide and the activation is QuickGELU.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from .open_clip_checkpoint_clip_hf import OPEN_CLIP_CONFIG_FILE, OPEN_CLIP_WEIGHT_FILES
from .tensor_files_clip_hf import most_common_dtype, read_content, tensors_of

logger = logging.get_logger(__name__)

# The numbers that an archive holds beside its weights; no other implementation writes them.
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")

# What these keys begin with, and whose they are.
FOREIGN_KEYS = {
    "text_decoder.": "a CoCa model of OpenCLIP",
    "audio.": "an audio model of OpenCLIP",
    "audio_branch.": "an audio model, CLAP",
    "logit_bias": "a SigLIP model",
    "visual.trunk.": "a model of OpenCLIP with an image tower of timm, as EVA, ConvNeXt, MobileCLIP and NaFlex are",
    "visual.blocks.": "a model with an image tower of timm's names, as EVA-CLIP is",
    "visual.cls_token": "a model with an image tower of timm's names, as EVA-CLIP is",
    "text.transformer.embeddings": "a model of OpenCLIP with a text tower of transformers",
    "text.transformer.resblocks": "a model of OpenCLIP in its custom-text layout: open the folder with "
    "open_clip_config.json",
    "text_model.": "a model of transformers or of this package: open the folder with its config.json",
    "state_dict": "a training checkpoint, in which the weights are one entry: only open_clip_config.json says which "
    "activation they need, so save its state dict as open_clip_pytorch_model.bin beside one",
}


def read_openai_checkpoint(path: str | PathLike[str], trust_pickle: bool = False) -> dict[str, Tensor]:
    """Returns the tensors of one of OpenAI's .pt files, by their names in OpenAI's code.

    Args:
        path: a TorchScript archive, whose code is not run, or a state dict.
        trust_pickle: see `read_tensors`.

    Raises:
        ValueError: the file is damaged, needs more than tensors, or is another model's.
    """
    content = read_content(path, trust_pickle)
    weights = tensors_of(content, path)
    for beginning, whose in FOREIGN_KEYS.items():
        if any(str(name).startswith(beginning) for name in (*content, *weights)):
            raise ValueError(f"{path} is {whose}, not a CLIP of OpenAI's")
    if not weights.keys() >= set(OPENAI_NUMBERS):
        _warn_of_assumptions(Path(path))
    return weights


def _warn_of_assumptions(path: Path) -> None:
    """Says what weights alone do not tell; raises ValueError where OpenCLIP's configuration would tell it."""
    if path.name in OPEN_CLIP_WEIGHT_FILES or (path.parent / OPEN_CLIP_CONFIG_FILE).is_file():
        raise ValueError(
            f"{path} is a file of OpenCLIP's, whose activation only {OPEN_CLIP_CONFIG_FILE} tells: open the folder "
            "with both"
        )
    logger.warning_once(
        f"{path} holds weights without the three numbers of OpenAI's archives ({', '.join(OPENAI_NUMBERS)}): "
        "QuickGELU and heads of 64 channels, which OpenAI's models have, are ASSUMED. Weights that were trained with "
        "OpenCLIP often need GELU: put those as open_clip_pytorch_model.bin beside an open_clip_config.json that says "
        "so, and open the folder"
    )


def openai_architecture(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the fields of the `ClipHfConfig` that weights in OpenAI's layout belong to.

    Args:
        weights: tensors by their names in OpenAI's code.

    Raises:
        ValueError: a tensor is missing that the sizes are read from, or the numbers that an archive holds beside its
            weights (`input_resolution`, `context_length`, `vocab_size`) contradict them.
    """
    vocab_size, text_width = _shape(weights, "token_embedding.weight", 2)
    num_positions, _ = _shape(weights, "positional_embedding", 2)
    config: dict[str, Any] = {
        "projection_dim": _shape(weights, "text_projection", 2)[1],
        "text_config": {
            "vocab_size": vocab_size,
            "hidden_size": text_width,
            "num_hidden_layers": _count(weights, "transformer.resblocks."),
            "max_position_embeddings": num_positions,
        },
        "vision_config": _vit(weights) if "visual.proj" in weights else _resnet(weights),
        "dtype": str(most_common_dtype(weights)).removeprefix("torch."),
    }
    found = (config["vision_config"]["image_size"], num_positions, vocab_size)
    for name, expected in zip(OPENAI_NUMBERS, found, strict=True):
        if name in weights and weights[name].tolist() != expected:
            raise ValueError(f"the file says {name} {weights[name].tolist()}, but its weights are made for {expected}")
    return config


def _vit(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    width, _, patch_size, _ = _shape(weights, "visual.conv1.weight", 4)
    return {
        "model_type": "clip_hf_vit",
        "image_size": patch_size * _grid_size(weights, "visual.positional_embedding"),
        "patch_size": patch_size,
        "hidden_size": width,
        "num_hidden_layers": _count(weights, "visual.transformer.resblocks."),
    }


def _resnet(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "model_type": "clip_hf_resnet",
        "image_size": 32 * _grid_size(weights, "visual.attnpool.positional_embedding"),
        "width": _shape(weights, "visual.layer1.0.conv1.weight", 4)[0],
        "depths": [_count(weights, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
    }


def _shape(weights: Mapping[str, Tensor], name: str, num_dimensions: int) -> torch.Size:
    if name not in weights:
        raise ValueError(f"there is no {name} among the {len(weights)} weights: this is no CLIP in OpenAI's layout")
    shape = weights[name].shape
    if len(shape) != num_dimensions:
        raise ValueError(f"{name} has shape {tuple(shape)}, but needs {num_dimensions} dimensions")
    return shape


def _grid_size(weights: Mapping[str, Tensor], name: str) -> int:
    num_positions = _shape(weights, name, 2)[0]
    side = round(max(num_positions - 1, 0) ** 0.5)
    if side**2 + 1 != num_positions or side < 1:
        raise ValueError(f"{name} has {num_positions} rows, which is not one more than a square of patches")
    return side


def _count(weights: Mapping[str, Tensor], beginning: str) -> int:
    found = {name.removeprefix(beginning).split(".")[0] for name in weights if name.startswith(beginning)}
    if not found or found != {str(index) for index in range(len(found))}:
        raise ValueError(f"the weights have the blocks {sorted(found)} of {beginning}*, but need them numbered from 0")
    return len(found)
