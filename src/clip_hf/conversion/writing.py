"""A checkpoint into the files of any layout; nothing half-written is ever seen under the target's name."""

import copy
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from clip_hf.model.bpe_clip_hf import OPENAI_VOCAB_SIZE
from clip_hf.model.modeling_clip_hf import ClipHfModel
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
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        path = Path(folder) / target.name
        yield path
        if target.exists():
            raise ValueError(f"{target} was made by someone else meanwhile: it is left as it is")
        os.replace(path, target)


def write_checkpoint(
    checkpoint: Checkpoint, target: Path, layout: Layout, max_shard_size: int | str = MAX_SHARD_SIZE
) -> None:
    """Writes a checkpoint.

    Args:
        checkpoint: what to write.
        target: a folder, or for OpenAI's layout a .pt file.
        layout: whose files to write.
        max_shard_size: of one file of weights, in bytes or as "5GB"; OpenCLIP's and OpenAI's are always one file.

    Raises:
        ValueError: the layout cannot express the model; nothing is written then.
    """
    write: dict[Layout, Callable[[Checkpoint, Path, int | str], None]] = {
        "clip_hf": _write_clip_hf,
        "transformers": _write_transformers,
        "open_clip": _write_open_clip,
        "openai": _write_openai,
    }
    write[layout](checkpoint, target, max_shard_size)


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


def _write_open_clip(checkpoint: Checkpoint, folder: Path, max_shard_size: int | str) -> None:
    content = to_open_clip_config(checkpoint.config, checkpoint.image_processor)
    if checkpoint.tokenizer is not None and not is_openai_vocabulary(checkpoint.tokenizer):
        # OpenCLIP then looks into the folder; in a repository it wants the repository's own name here.
        content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = folder.name
    folder.mkdir()
    (folder / OPEN_CLIP_CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    weights = to_layout(checkpoint.weights, "open_clip", checkpoint.config)
    save_file(weights, folder / OPEN_CLIP_WEIGHT_FILES[0], metadata={"format": "pt"})
    _write_clip_tokenizer(checkpoint.tokenizer, folder)


def _write_openai(checkpoint: Checkpoint, path: Path, max_shard_size: int | str) -> None:
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
    CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=tokenizer.model_max_length).save_pretrained(folder)


def is_openai_vocabulary(tokenizer: ClipHfTokenizer) -> bool:
    """Returns whether a tokenizer has OpenAI's vocabulary, which OpenCLIP brings along."""
    _, merges = _vocabulary(tokenizer)
    lines = "\n".join(" ".join(pair) for pair in merges)
    is_same = hashlib.sha256(lines.encode()).hexdigest() == OPENAI_MERGES_SHA256
    return is_same and len(tokenizer) == OPENAI_VOCAB_SIZE


def _vocabulary(tokenizer: ClipHfTokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
