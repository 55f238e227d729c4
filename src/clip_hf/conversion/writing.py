"""A checkpoint into the files of any layout; nothing half-written is ever seen under the target's name."""

import copy
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPTokenizer

from clip_hf.conversion.foreign_configs import (
    require_openai_architecture,
    to_open_clip_config,
    to_transformers_config,
)
from clip_hf.conversion.layouts import Layout, to_layout
from clip_hf.conversion.reading import Checkpoint
from clip_hf.model.bpe_clip_hf import END_OF_TEXT, OPENAI_VOCAB_SIZE, START_OF_TEXT
from clip_hf.model.modeling_clip_hf import ClipHfModel
from clip_hf.model.normalization_clip_hf import with_normalization
from clip_hf.model.open_clip_checkpoint_clip_hf import OPEN_CLIP_CONFIG_FILE, OPEN_CLIP_WEIGHT_FILES
from clip_hf.model.processing_clip_hf import ClipHfProcessor
from clip_hf.model.tokenization_clip_hf import ClipHfTokenizer

MAX_SHARD_SIZE = "5GB"
# Of the merges in OpenAI's bpe_simple_vocab_16e6.txt.gz, as lines of two tokens.
OPENAI_MERGES_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"


@contextmanager
def new_target(target: Path) -> Iterator[Path]:
    """Gives a path to write to, which becomes `target` if all goes well and nothing if not.

    Args:
        target: the file or folder to be made.

    Raises:
        ValueError: the target exists.
    """
    if target.exists():
        raise ValueError(f"{target} exists already: name another target, or delete it")
    new_parents = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            path = Path(folder) / target.name
            yield path
            if target.exists():
                raise ValueError(f"{target} was made by someone else meanwhile: it is left as it is")
            os.replace(path, target)
    finally:
        with suppress(OSError):  # of those that are not empty
            for parent in new_parents:
                parent.rmdir()


def write_checkpoint(
    checkpoint: Checkpoint, target: Path, layout: Layout, max_shard_size: int | str | None = None
) -> None:
    """Writes a checkpoint.

    Args:
        checkpoint: what to write.
        target: a folder, or for OpenAI's layout a .pt file.
        layout: whose files to write.
        max_shard_size: of one file of weights, in bytes or as "5GB", which is the default; OpenCLIP's and OpenAI's
            are always one file.

    Raises:
        ValueError: the layout cannot express the model, or not in several files; nothing is written then.
    """
    if layout != "clip_hf":  # of which alone the model normalises raw pixels
        processor = with_normalization(checkpoint.image_processor, checkpoint.config.vision_config)
        checkpoint = replace(checkpoint, image_processor=processor)
    in_one_file: dict[Layout, Callable[[Checkpoint, Path], None]] = {
        "open_clip": _write_open_clip,
        "openai": _write_openai,
    }
    if layout not in in_one_file:
        write = _write_clip_hf if layout == "clip_hf" else _write_transformers
        write(checkpoint, target, max_shard_size or MAX_SHARD_SIZE)
    elif max_shard_size is not None:
        raise ValueError(f"max_shard_size is {max_shard_size}, but {layout}'s weights are one file: leave it out")
    else:
        in_one_file[layout](checkpoint, target)


def _write_clip_hf(checkpoint: Checkpoint, folder: Path, max_shard_size: int | str) -> None:
    with torch.device("meta"):  # saving writes into the configuration, so the model has one of its own
        model = ClipHfModel(copy.deepcopy(checkpoint.config)).to(checkpoint.config.dtype)
    # A copy of the dictionary: transformers empties it as it writes.
    model.save_pretrained(folder, state_dict=dict(checkpoint.weights), max_shard_size=max_shard_size)
    if checkpoint.tokenizer is None:
        checkpoint.image_processor.save_pretrained(folder)
    else:
        ClipHfProcessor(checkpoint.image_processor, checkpoint.tokenizer).save_pretrained(folder)


def _write_transformers(checkpoint: Checkpoint, folder: Path, max_shard_size: int | str) -> None:
    config = to_transformers_config(checkpoint.config)
    config.save_pretrained(folder)
    weights = to_layout(checkpoint.weights, "transformers", checkpoint.config)
    save_torch_state_dict(
        weights,
        folder,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
        metadata={"format": "pt"},
    )
    options = checkpoint.image_processor.to_dict()
    CLIPImageProcessorPil(
        **{
            name: value
            for name, value in options.items()
            if name in CLIPImageProcessorPil.valid_kwargs.__annotations__
        }
    ).save_pretrained(folder)
    _write_clip_tokenizer(checkpoint.tokenizer, folder)


def _write_open_clip(checkpoint: Checkpoint, folder: Path) -> None:
    content = to_open_clip_config(checkpoint.config, checkpoint.image_processor)
    if checkpoint.tokenizer is not None and not is_openai_vocabulary(checkpoint.tokenizer):
        # OpenCLIP then looks into the folder; in a repository it wants the repository's own name here.
        content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = folder.name
    folder.mkdir()
    (folder / OPEN_CLIP_CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    weights = to_layout(checkpoint.weights, "open_clip", checkpoint.config)
    save_file(weights, folder / OPEN_CLIP_WEIGHT_FILES[0], metadata={"format": "pt"})
    _write_clip_tokenizer(checkpoint.tokenizer, folder)


def _write_openai(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a TorchScript archive: OpenAI's `clip.load` opens no other files (clip/clip.py:128-141@d05afc4)."""
    config = checkpoint.config
    require_openai_architecture(config, checkpoint.image_processor)
    numbers = {
        "input_resolution": config.vision_config.image_size,
        "context_length": config.text_config.max_position_embeddings,
        "vocab_size": config.text_config.vocab_size,
    }
    weights = to_layout(checkpoint.weights, "openai", config)
    weights |= {name: torch.tensor(number) for name, number in numbers.items()}
    root = nn.Module()
    for name, tensor in weights.items():
        _register(root, name, tensor)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        torch.jit.save(torch.jit.script(root), path)


def _register(root: nn.Module, name: str, tensor: Tensor) -> None:
    *module_names, leaf = name.split(".")
    module = root
    for module_name in module_names:
        if module_name not in module._modules:
            module.add_module(module_name, nn.Module())
        module = module.get_submodule(module_name)
    if tensor.untyped_storage().nbytes() > tensor.nbytes:
        tensor = tensor.clone()  # an archive holds whole storages, and a mapped file is one
    module.register_buffer(leaf, tensor)


def _write_clip_tokenizer(tokenizer: ClipHfTokenizer | None, folder: Path) -> None:
    if tokenizer is None:
        return
    vocab, merges = _vocabulary(tokenizer)
    CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        model_max_length=tokenizer.model_max_length,
        added_tokens_decoder=tokenizer.added_tokens_decoder,
        clean=tokenizer.clean,  # which ours reads again, and nobody else
    ).save_pretrained(folder)


def tokenizer_notes(tokenizer: ClipHfTokenizer | None, layout: Layout) -> list[str]:
    """Returns what to tell the user of the tokenizer that goes, or does not go, with a converted checkpoint.

    Args:
        tokenizer: the source's.
        layout: whose files were written.
    """
    notes = []
    if layout == "openai":
        notes.append("OpenAI's code brings its own; so it does for the preprocessing")
        if tokenizer is not None and not is_openai_vocabulary(tokenizer):
            notes.append("its vocabulary gives other ids than this model's: keep the source's tokenizer")
    elif tokenizer is None:
        notes.append("none: the source has none. Give one with --tokenizer (OpenAI's, for the released models)")
    if tokenizer is not None and layout == "transformers" and tokenizer.clean:
        notes.append("CLIPTokenizer does not clean texts: those with HTML such as '&amp;' get other ids there")
    if tokenizer is not None and layout in ("open_clip", "openai") and not tokenizer.clean:
        notes.append(f"{layout}'s code cleans texts, this tokenizer does not: those with '&amp;' get other ids there")
    return notes


def is_openai_vocabulary(tokenizer: ClipHfTokenizer) -> bool:
    """Returns whether a tokenizer has OpenAI's vocabulary and nothing added, which OpenCLIP brings along."""
    _, merges = _vocabulary(tokenizer)
    lines = "\n".join(" ".join(pair) for pair in merges)
    is_same = hashlib.sha256(lines.encode()).hexdigest() == OPENAI_MERGES_SHA256
    has_added = tokenizer.added_tokens_encoder.keys() != {START_OF_TEXT, END_OF_TEXT}
    return is_same and len(tokenizer) == OPENAI_VOCAB_SIZE and not has_added


def _vocabulary(tokenizer: ClipHfTokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
