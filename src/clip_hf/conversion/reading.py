"""A checkpoint of any layout, from its files: configuration, weights by our names, image processor, tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.image_utils import SizeDict

from clip_hf.conversion.layouts import Layout, from_layout
from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.image_processing_clip_hf import ClipHfImageProcessor
from clip_hf.model.normalization_clip_hf import normalization_of
from clip_hf.model.open_clip_checkpoint_clip_hf import OPEN_CLIP_CONFIG_FILE, OPEN_CLIP_WEIGHT_FILES, is_open_clip
from clip_hf.model.openai_checkpoint_clip_hf import openai_architecture, read_openai_checkpoint
from clip_hf.model.tensor_files_clip_hf import WEIGHT_FILES, find_file, most_common_dtype, read_weights
from clip_hf.model.tokenization_clip_hf import ClipHfTokenizer

LAYOUT_OF_MODEL_TYPE: dict[str, Layout] = {"clip_hf": "clip_hf", "clip": "transformers"}


@dataclass
class Checkpoint:
    """A model with what it needs to be used.

    Args:
        layout: whose files it was read from.
        config: of the model.
        weights: every tensor by our names, in the types of the files.
        image_processor: what its images pass through.
        tokenizer: what its texts pass through; None where neither the files nor the caller have one.
    """

    layout: Layout
    config: ClipHfConfig
    weights: dict[str, Tensor]
    image_processor: ClipHfImageProcessor
    tokenizer: ClipHfTokenizer | None


def read_checkpoint(source: str, tokenizer: str | None = None, trust_pickle: bool = False) -> Checkpoint:
    """Returns the checkpoint of a file, a folder or a repository.

    Args:
        source: one of OpenAI's .pt files; or a folder, or repository on the Hub, of any other layout.
        tokenizer: a folder, a repository, or OpenAI's bpe_simple_vocab_16e6.txt.gz, instead of the source's own.
        trust_pickle: also read pickles that need more than tensors. They may run any code as they are read.

    Raises:
        ValueError: the source is no CLIP of these layouts, is damaged, or its parts do not fit each other.
        OSError: there is no such source.
    """
    try:
        layout = find_layout(source)
        if layout == "openai":
            found = read_openai_checkpoint(source, trust_pickle)
            config = ClipHfConfig(**openai_architecture(found))
            size = config.vision_config.image_size
            image_processor = ClipHfImageProcessor(size=size, crop_size=size)
        else:
            config = ClipHfConfig.from_pretrained(source)
            names = OPEN_CLIP_WEIGHT_FILES if layout == "open_clip" else WEIGHT_FILES
            found = read_weights(source, names, trust_pickle)
            image_processor = ClipHfImageProcessor.from_pretrained(source)
        weights = from_layout(found, layout, config)
        config.dtype = most_common_dtype(weights)
        for name, values in normalization_of(image_processor.to_dict()).items():
            setattr(config.vision_config, name, values)
    except (AttributeError, LookupError, TypeError, StrictDataclassError) as error:  # of JSON files made by anybody
        raise ValueError(f"{source}: its files are not those of a CLIP ({type(error).__name__}: {error})") from error
    except ValueError as error:
        raise ValueError(str(error) if source in str(error) else f"{source}: {error}") from error
    checkpoint = Checkpoint(layout, config, weights, image_processor, _read_tokenizer(source, layout, tokenizer))
    _require_fitting_parts(checkpoint, source)
    return checkpoint


def round_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Rounds all floating-point weights but the temperature, which is float32 in every model of ours.

    Args:
        checkpoint: whose weights to round.
        dtype: to what.

    Raises:
        ValueError: a weight is too large for the type.
    """
    for name, tensor in checkpoint.weights.items():
        if tensor.is_floating_point() and name != "logit_scale":
            rounded = tensor.to(dtype)
            if not rounded.isfinite().equal(tensor.isfinite()):
                largest = tensor[tensor.isfinite()].abs().max().item()
                raise ValueError(
                    f"{name} has values up to {largest:.4g}, but {dtype} ends at {torch.finfo(dtype).max:.4g}: choose "
                    "another type, such as bfloat16"
                )
            checkpoint.weights[name] = rounded
    checkpoint.config.dtype = dtype


def find_layout(source: str) -> Layout:
    """Returns whose files a source has.

    Raises:
        ValueError: nobody's of those that are known.
        OSError: there is no such source.
    """
    if Path(source).is_file():
        if Path(source).suffix == ".safetensors":
            raise ValueError(f"{source} is one file of a checkpoint: name the folder with its configuration")
        return "openai"
    if is_open_clip(source):
        return "open_clip"
    config_dict, _ = PreTrainedConfig.get_config_dict(source)
    if not config_dict:
        raise ValueError(f"{source} is no checkpoint: it has neither a config.json nor an {OPEN_CLIP_CONFIG_FILE}")
    model_type = config_dict.get("model_type")
    if model_type not in LAYOUT_OF_MODEL_TYPE:
        raise ValueError(
            f"{source} holds a model of type '{model_type}', but only {', '.join(LAYOUT_OF_MODEL_TYPE)}, folders with "
            f"{OPEN_CLIP_CONFIG_FILE} and OpenAI's .pt files are CLIP as published"
        )
    return LAYOUT_OF_MODEL_TYPE[model_type]


def _read_tokenizer(source: str, layout: Layout, tokenizer: str | None) -> ClipHfTokenizer | None:
    if tokenizer is not None and tokenizer.endswith(".gz"):
        return ClipHfTokenizer.from_openai_bpe(tokenizer)
    if tokenizer is None:
        names = ("tokenizer.json", "vocab.json")
        found = layout != "openai" and any(find_file(source, name) for name in names)
        if not found:
            return None
    return ClipHfTokenizer.from_pretrained(tokenizer or source)


def _require_fitting_parts(checkpoint: Checkpoint, source: str) -> None:
    """Raises ValueError where image processor or tokenizer are not the model's: two checkpoints were mixed up."""
    text, image_size = checkpoint.config.text_config, checkpoint.config.vision_config.image_size
    crop_size: Any = checkpoint.image_processor.crop_size
    if checkpoint.image_processor.do_center_crop and crop_size != SizeDict(height=image_size, width=image_size):
        raise ValueError(
            f"{source}: its image processor makes images of {crop_size.height} x {crop_size.width} pixels, its "
            f"model takes {image_size} x {image_size}: these files do not belong together"
        )
    tokenizer = checkpoint.tokenizer
    if tokenizer is None:
        return
    if tokenizer.eos_token_id != text.eos_token_id or len(tokenizer) > text.vocab_size:
        raise ValueError(
            f"{source}: the tokenizer has {len(tokenizer)} entries and ends a text with id {tokenizer.eos_token_id}, "
            f"the model has {text.vocab_size} and reads at id {text.eos_token_id}: these do not belong together"
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, text.max_position_embeddings)
