"""What of a model's folder goes to the Hub: weights, processor, results, page and, if wanted, code."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers.integrations import is_deepspeed_zero3_enabled

from clip_hf.conversion.layouts import Layout, from_layout
from clip_hf.conversion.reading import read_checkpoint
from clip_hf.conversion.writing import write_checkpoint
from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.open_clip_checkpoint_clip_hf import OPEN_CLIP_CONFIG_FILE
from clip_hf.model.processing_clip_hf import ClipHfProcessor
from clip_hf.model_card.credentials import find_secret
from clip_hf.model_card.json_files import read_json
from clip_hf.model_card.page import page_of_folder

PAGE = "README.md"
FORMATS: tuple[Layout, ...] = ("clip_hf", "transformers", "open_clip")
# Beside weights, page and code. A training leaves more: its arguments are a pickle, and its checkpoints are large.
PROCESSOR_AND_RESULTS = (
    "*processor_config.json",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "results.json",
    "card.json",
    "curves.png",
    "LICENSE*",
)
CODE = "*_clip_hf*.py"
# The keys of a configuration that name code, and the files that have them.
CODE_KEYS = ("auto_map", "custom_pipelines")
CONFIGURATIONS = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
# What transformers raises for JSON that is not what it should be.
BROKEN_JSON = (OSError, ValueError, AttributeError, LookupError, TypeError, StrictDataclassError)
# Of files that hold no text, in which a secret could be.
NO_TEXT = (".safetensors", ".png")

# A file as it lies in the folder, or what is made of it.
Content = Path | bytes


@contextmanager
def collected_files(
    folder: Path,
    repo_id: str,
    with_code: bool = False,
    formats: tuple[str, ...] = ("clip_hf",),
    needs_processor: bool = True,
    **facts: Any,
) -> Iterator[dict[str, Content]]:
    """The files of a model, by their path in the repository; those of other formats exist as long as the context.

    Args:
        folder: of a saved model and its processor. Nothing in it is changed.
        repo_id: what the page tells its readers to load.
        with_code: also the code that `trust_remote_code` runs; without it, opening the model takes `clip_hf`.
        formats: of `FORMATS`.
        needs_processor: False for a model whose processor goes by itself.
        facts: for the page, of `ModelCardFacts`; card.json may replace them.

    Raises:
        ValueError: the folder is not a whole model of ours, a format is unknown, or a file holds a token,
            a password or a signature.
    """
    if unknown := sorted(set(formats) - set(FORMATS)):
        raise ValueError(f"unknown formats {unknown}; the known ones are {', '.join(FORMATS)}")
    if "clip_hf" not in formats:
        raise ValueError(f"formats is {', '.join(formats)}, but the repository's page is about clip_hf: add it")
    weights = _check_weights(folder)
    _check_model(folder)
    _check_fit(folder, weights)
    if with_code:
        _check_code(folder)
    if needs_processor:
        _check_processor(folder)
    names = ["config.json", *weights]
    for pattern in (*PROCESSOR_AND_RESULTS, *((CODE,) if with_code else ())):
        names += sorted(path.name for path in folder.glob(pattern))
    files: dict[str, Content] = {name: folder / name for name in names}
    if not with_code:
        files |= {name: _without_code(folder / name) for name in CONFIGURATIONS if name in files}
    others = [name for name in FORMATS if name in formats and name != "clip_hf"]
    files[PAGE] = page_of_folder(folder, repo_id, has_code=with_code, formats=others, **facts).encode()
    with TemporaryDirectory() as converted:
        for name in others:
            files |= _converted(folder, Path(converted) / name, name, repo_id)
        _check_secrets(files)
        yield files


def _check_model(folder: Path) -> None:
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type != ClipHfConfig.model_type:
        raise ValueError(
            f"{folder} holds a model of type '{model_type}', but '{ClipHfConfig.model_type}' is wanted: convert it, "
            f"`python scripts/convert_checkpoint.py {folder} TARGET --to clip_hf`"
        )


def _check_fit(folder: Path, weights: list[str]) -> None:
    """Raises ValueError unless the files hold the weights of the configuration's model, no fewer and no others."""
    if is_deepspeed_zero3_enabled():
        return  # every model would be divided among the processes as it is built, and this is one of them
    tensors: dict[str, torch.Tensor] = {}
    for name in weights:
        if name.endswith(".safetensors"):
            with safe_open(folder / name, "pt") as file:
                shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}
            tensors |= {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    try:
        config = ClipHfConfig.from_pretrained(folder)
    except BROKEN_JSON as error:
        raise ValueError(f"{folder / 'config.json'} is not that of a model of ours: {error}") from error
    try:
        from_layout(tensors, "clip_hf", config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _check_processor(folder: Path) -> None:
    try:
        ClipHfProcessor.from_pretrained(folder)
    except BROKEN_JSON as error:
        command = f"processor.save_pretrained({str(folder)!r})"
        raise ValueError(f"{folder} has no processor, without which nobody can use it: `{command}`") from error


def _check_weights(folder: Path) -> list[str]:
    """The names of the files of weights, each of which can be read."""
    index = "model.safetensors.index.json"
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: give a folder that save_pretrained has written")
    if (folder / "model.safetensors").is_file() or not (folder / index).is_file():
        weights = ["model.safetensors"]
    else:
        weight_map = read_json(folder / index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{folder / index} has no weight_map, which names files: save the model again")
        weights = sorted(set(weight_map.values()))
    for name in weights:
        try:
            with safe_open(folder / name, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / name} is missing or broken: save the model again ({error})") from error
    return weights if weights == ["model.safetensors"] else [index, *weights]


def _check_code(folder: Path) -> None:
    auto_map = read_json(folder / "config.json").get("auto_map")
    modules = {str(name).partition(".")[0] for name in auto_map.values()} if isinstance(auto_map, dict) else set()
    if not modules or not all((folder / f"{module}.py").is_file() for module in modules):
        raise ValueError(
            f"{folder} does not hold the model's code: save the model there with save_pretrained, which brings it, or "
            "leave out with_code"
        )


def _without_code(path: Path) -> bytes:
    return _as_json(_strip(read_json(path)))


def _as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _strip(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {key: _strip(value) for key, value in content.items() if key not in CODE_KEYS}


def _converted(folder: Path, target: Path, layout: Layout, repo_id: str) -> dict[str, Content]:
    """The model in another format, where its readers look: transformers' in a folder, OpenCLIP's at the top.

    There the tokenizer is ours, so OpenCLIP is told of a folder with its own. OpenAI's it has already.
    """
    write_checkpoint(read_checkpoint(str(folder)), target, layout)
    written: dict[str, Content] = {path.name: path for path in sorted(target.iterdir())}
    if layout == "transformers":
        return {f"{layout}/{name}": path for name, path in written.items()}
    config = read_json(target / OPEN_CLIP_CONFIG_FILE)
    files = {name: written.pop(name) for name in list(written) if name.startswith("open_clip")}
    text_config = config["model_cfg"]["text_cfg"]
    if "hf_tokenizer_name" in text_config:
        text_config |= {"hf_tokenizer_name": repo_id, "tokenizer_kwargs": {"subfolder": layout}}
        files[OPEN_CLIP_CONFIG_FILE] = _as_json(config)
        files |= {f"{layout}/{name}": path for name, path in written.items()}
    return files


def _check_secrets(files: Mapping[str, Content]) -> None:
    for name, content in files.items():
        if not name.endswith(NO_TEXT):
            if what := find_secret(content if isinstance(content, bytes) else content.read_bytes()):
                raise ValueError(f"{name} holds what looks like {what}: remove it, and renew what it lets in")
