"""OpenCLIP's checkpoints: a folder or repository with open_clip_config.json and one file of weights.

The fields and their defaults are those of open_clip 3.3.0 (model.py: CLIPTextCfg, CLIPVisionCfg; transform.py:
PreprocessCfg). What they describe is ours if it is a CLIP as published, with either GELU; all else is refused by name.
"""

import json
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Any

from .tensor_files_clip_hf import find_file

OPEN_CLIP_CONFIG_FILE = "open_clip_config.json"
OPEN_CLIP_WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

RESAMPLE = {"bicubic": 3, "bilinear": 2}  # Pillow's numbers

# What a CLIP as published has, with open_clip's defaults, where the field names another kind of model; a field at None
# or False names nothing.
_MODEL_FIELDS = {"embed_dim", "quick_gelu", "custom_text", "vision_cfg", "text_cfg", "init_logit_scale"}
_TOWER_FIELDS: dict[str, dict[str, Any]] = {
    "vision_cfg": {
        **{"layers": 12, "width": 768, "mlp_ratio": 4.0},
        **{"head_width": 64, "patch_size": 16, "image_size": 224},
    },
    "text_cfg": {
        **{"layers": 12, "width": 512, "mlp_ratio": 4.0},
        **{"heads": 8, "context_length": 77, "vocab_size": 49408},
    },
}
# Fields of an image tower that may be lists: blocks of each stage of a ResNet, height and width.
_LISTS = ("layers", "patch_size", "image_size")
_PUBLISHED = {
    "pool_type": ("tok", "argmax"),
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
    "block_type": ("default",),
    "tokenizer_kwargs": ({"clean": "lower"},),
}
# Fields of training, of outputs, of the tokenizer, and those that another field would have to switch on.
_WITHOUT_EFFECT = {
    *("patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads"),
    *("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"),
    *("hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "pad_id", "eos_id", "hf_tokenizer_name"),
}


def is_open_clip(source: str | PathLike[str] | None, **hub_arguments: Any) -> bool:
    """Returns whether a checkpoint is OpenCLIP's alone: no config.json beside it names a model of transformers.

    Args:
        source: a folder or the name of a repository; None, or one file, is none of OpenCLIP's.
        hub_arguments: any of `HUB_ARGUMENTS`, as in `from_pretrained`; others are ignored.

    Raises:
        FileNotFoundError: what can only be a path does not exist.
    """
    # The name of a repository has one slash at most; the Hub would say so of a path.
    is_path = source is not None and (
        Path(source).suffix == ".pt" or Path(source).parts[2:] or str(source)[:1] in "./~"
    )
    if is_path and not Path(str(source)).exists():
        raise FileNotFoundError(f"{source} is not there")
    if source is None or Path(source).is_file():
        return False
    path = find_file(source, "config.json", **hub_arguments)
    try:  # timm's models have a config.json too, without a model_type
        is_other = path is not None and "model_type" in json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, TypeError):
        is_other = True  # whoever reads it next says what is wrong with it
    return not is_other and find_file(source, OPEN_CLIP_CONFIG_FILE, **hub_arguments) is not None


def read_open_clip_config(source: str | PathLike[str], **hub_arguments: Any) -> dict[str, Any]:
    """Returns the content of an open_clip_config.json that describes a CLIP as published.

    Args:
        source: a folder or the name of a repository.
        hub_arguments: as in `is_open_clip`.

    Raises:
        ValueError: the file is not one of OpenCLIP's, or describes another kind of model; the message says which.
    """
    path = find_file(source, OPEN_CLIP_CONFIG_FILE, **hub_arguments)
    try:
        content = json.loads(Path(str(path)).read_text(encoding="utf-8"))
        _check(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return content


def translate_open_clip_config(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of the `ClipHfConfig` that an open_clip_config.json describes.

    Args:
        content: what `read_open_clip_config` returns.

    Raises:
        ValueError: its images or patches are no squares.
    """
    model_config = content["model_cfg"]
    hidden_act = "quick_gelu" if model_config.get("quick_gelu") else "gelu"
    projection = {"projection_dim": model_config["embed_dim"]}
    text = _sizes(model_config, "text_cfg")
    text_config = {
        "vocab_size": text["vocab_size"],
        "max_position_embeddings": text["context_length"],
        "hidden_size": text["width"],
        "intermediate_size": int(text["width"] * text["mlp_ratio"]),
        "num_hidden_layers": text["layers"],
        "num_attention_heads": text["heads"],
        "hidden_act": hidden_act,
        **projection,
    }
    config = {
        "model_type": "clip_hf",
        "text_config": text_config,
        "vision_config": _translate_image_tower(_sizes(model_config, "vision_cfg"), hidden_act)
        | _normalization(content)
        | projection,
        **projection,
    }
    if "init_logit_scale" in model_config:
        config["logit_scale_init_value"] = model_config["init_logit_scale"]
    return config


def open_clip_image_options(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of the `ClipHfImageProcessor` that does what an open_clip_config.json describes.

    Args:
        content: what `read_open_clip_config` returns.

    Raises:
        ValueError: it asks for a filter or a way to resize that the image processor does not have.
    """
    preprocessing = content.get("preprocess_cfg") or {}
    size = _square(_sizes(content["model_cfg"], "vision_cfg")["image_size"])
    resize_mode = preprocessing.get("resize_mode", "shortest")
    filter_name = preprocessing.get("interpolation", "bicubic")
    sizes = open_clip_sizes(size)
    if resize_mode not in list(sizes) or filter_name not in list(RESAMPLE):
        raise ValueError(
            f"preprocess_cfg asks for resize_mode {resize_mode!r} and interpolation {filter_name!r}, but there are "
            f"{', '.join(sizes)} and {', '.join(RESAMPLE)}"
        )
    options = {
        "size": sizes[resize_mode],
        "crop_size": {"height": size, "width": size},
        "resample": RESAMPLE[filter_name],
    }
    return options | _normalization(content)


def open_clip_sizes(image_size: int) -> dict[str, dict[str, int]]:
    """Returns the image processor's `size` for each resize mode of OpenCLIP that it has."""
    return {"shortest": {"shortest_edge": image_size}, "squash": {"height": image_size, "width": image_size}}


def _translate_image_tower(vision: dict[str, Any], hidden_act: str) -> dict[str, Any]:
    layers, width, head_width = vision["layers"], vision["width"], vision["head_width"]
    image_size = _square(vision["image_size"])
    if isinstance(layers, list):
        return {
            "model_type": "clip_hf_resnet",
            "image_size": image_size,
            "width": width,
            "depths": layers,
            "num_attention_heads": 32 * width // head_width,
        }
    return {
        "model_type": "clip_hf_vit",
        "image_size": image_size,
        "patch_size": _square(vision["patch_size"]),
        "hidden_size": width,
        "intermediate_size": int(width * vision["mlp_ratio"]),
        "num_hidden_layers": layers,
        "num_attention_heads": width // head_width,
        "hidden_act": hidden_act,
    }


def _square(size: int | list[int]) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"OpenCLIP's configuration says image_size or patch_size {size}, but it must be a square")
    return sides.pop()


def _normalization(content: dict[str, Any]) -> dict[str, Any]:
    preprocessing = content.get("preprocess_cfg") or {}
    return {f"image_{name}": preprocessing[name] for name in ("mean", "std") if preprocessing.get(name)}


def _sizes(model_config: dict[str, Any], part: str) -> dict[str, Any]:
    """Returns the fields of a tower that its sizes follow from."""
    fields = {name: model_config[part].get(name, default) for name, default in _TOWER_FIELDS[part].items()}
    if part == "vision_cfg" and isinstance(fields["layers"], list):
        del fields["patch_size"], fields["mlp_ratio"]  # a ResNet has neither
    return fields


def _check(content: Any) -> None:
    """Raises ValueError unless a configuration describes a CLIP as published and every field is of its type."""
    _require("the file", content, isinstance(content, dict), "an object")
    model_config = content.get("model_cfg")
    _require("model_cfg", model_config, isinstance(model_config, dict), "an object")
    kind = _kind_of(model_config)
    if kind is not None:
        raise ValueError(f"OpenCLIP's configuration describes {kind}, but ClipHfModel is CLIP as published")
    embed_dim, scale = model_config.get("embed_dim"), model_config.get("init_logit_scale", 0.0)
    _require("embed_dim", embed_dim, _is_size(embed_dim), "a whole number above 0")
    _require("init_logit_scale", scale, isinstance(scale, int | float), "a number")
    for part in _TOWER_FIELDS:
        _check_tower(model_config, part)
    preprocessing = content.get("preprocess_cfg") or {}
    _require("preprocess_cfg", preprocessing, isinstance(preprocessing, dict), "an object")
    for name, value in _normalization(content).items():
        is_right = isinstance(value, list) and len(value) == 3 and all(isinstance(one, int | float) for one in value)
        _require(f"preprocess_cfg.{name.removeprefix('image_')}", value, is_right, "a list of three numbers")


def _check_tower(model_config: dict[str, Any], part: str) -> None:
    tower = model_config.get(part)
    _require(part, tower, isinstance(tower, dict), "an object")
    known = _TOWER_FIELDS[part].keys() | _WITHOUT_EFFECT
    for name, value in model_config[part].items():
        if name == "tokenizer_kwargs" and isinstance(value, dict):  # where its files lie changes no text
            value = {key: option for key, option in value.items() if key != "subfolder"}
        if name not in known and value and value not in _PUBLISHED.get(name, ()):
            raise ValueError(f"OpenCLIP's configuration says {part}.{name}={value!r}, which CLIP as published has not")
    for name, value in _sizes(model_config, part).items():
        values = value if isinstance(value, list) and part == "vision_cfg" and name in _LISTS else [value]
        if name == "mlp_ratio":
            _require(f"{part}.{name}", value, _is_size(value, int | float), "a number above 0")
        else:
            _require(f"{part}.{name}", value, values and all(map(_is_size, values)), "a whole number above 0")


def _is_size(value: Any, kinds: type | UnionType = int) -> bool:
    return isinstance(value, int | float) and isinstance(value, kinds) and not isinstance(value, bool) and value > 0


def _require(name: str, value: Any, condition: Any, wanted: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value!r:.80}, but OpenCLIP has {wanted} there")


def _kind_of(model_config: dict[str, Any]) -> str | None:
    """Returns the name of the kind of model, None for a CLIP as far as these fields say."""
    vision, text = (
        part if isinstance(part, dict) else {} for part in map(model_config.get, ("vision_cfg", "text_cfg"))
    )
    timm_name = str(vision.get("timm_model_name") or "")
    if "multimodal_cfg" in model_config:
        return "a CoCa model (multimodal_cfg)"
    if "audio_cfg" in model_config:
        return "an audio model (audio_cfg)"
    if model_config.get("init_logit_bias") is not None:
        return "a SigLIP model (init_logit_bias)"
    for beginning, family in (("eva", "an EVA"), ("naflex", "a NaFlex"), ("", "a timm")):
        if timm_name and timm_name.startswith(beginning):
            return f"{family} image tower (timm_model_name '{timm_name}')"
    if text.get("hf_model_name"):
        return f"a text tower of transformers (hf_model_name '{text['hf_model_name']}')"
    unknown = sorted(name for name, value in model_config.items() if value and name not in _MODEL_FIELDS)
    return f"a model with {', '.join(unknown)}" if unknown else None
