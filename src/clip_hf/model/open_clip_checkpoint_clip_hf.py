"""OpenCLIP's checkpoints: a folder or repository with open_clip_config.json and one file of weights.

The fields and their defaults are those of open_clip 3.3.0 (model.py: CLIPTextCfg, CLIPVisionCfg; transform.py:
PreprocessCfg). What they describe is ours if it is a CLIP as published, with either GELU; all else is refused by name.
"""

import json
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils import cached_file

from .tensor_files_clip_hf import read_tensors

OPEN_CLIP_CONFIG_FILE = "open_clip_config.json"
OPEN_CLIP_WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
RESAMPLE = {"bicubic": 3, "bilinear": 2}  # Pillow's numbers

# What a CLIP as published has, where the field names another kind of model; a field at None or False names nothing.
_MODEL_FIELDS = {"embed_dim", "quick_gelu", "custom_text", "vision_cfg", "text_cfg", "init_logit_scale"}
_SIZES = {"layers", "width", "mlp_ratio"}
_VISION_FIELDS = _SIZES | {"head_width", "patch_size", "image_size"}
_TEXT_FIELDS = _SIZES | {"heads", "context_length", "vocab_size"}
_PUBLISHED = {
    "pool_type": ("tok", "argmax"),
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
    "block_type": ("default",),
}
# Fields of training, of outputs, of the tokenizer, and those that another field would have to switch on.
_WITHOUT_EFFECT = {
    *("patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads"),
    *("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"),
    *("hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "pad_id", "eos_id"),
    *("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"),
}


def is_open_clip(source: str | PathLike[str] | None, **hub_arguments: Any) -> bool:
    """Returns whether a checkpoint is OpenCLIP's alone: no config.json beside it names a model of transformers.

    Args:
        source: a folder or the name of a repository; None, or one file, is none of OpenCLIP's.
        hub_arguments: any of `HUB_ARGUMENTS`, as in `from_pretrained`; others are ignored.
    """
    if source is None or Path(source).is_file():
        return False
    path = _find(source, "config.json", hub_arguments)
    try:  # timm's models have a config.json too, without a model_type
        is_other = path is not None and "model_type" in json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        is_other = True  # whoever reads it next says what is wrong with it
    return not is_other and _find(source, OPEN_CLIP_CONFIG_FILE, hub_arguments) is not None


def read_open_clip_config(source: str | PathLike[str], **hub_arguments: Any) -> dict[str, Any]:
    """Returns the content of the open_clip_config.json of a folder or repository.

    Args:
        source: a folder or the name of a repository.
        hub_arguments: as in `is_open_clip`.

    Raises:
        ValueError: the file is not one of OpenCLIP's.
    """
    path = _find(source, OPEN_CLIP_CONFIG_FILE, hub_arguments)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        model_config = content["model_cfg"]
        if all(
            isinstance(part, dict) for part in (model_config, model_config["vision_cfg"], model_config["text_cfg"])
        ):
            return content
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not one of OpenCLIP's configurations ({type(error).__name__}: {error})"
        ) from error
    raise ValueError(f"{path} is not one of OpenCLIP's configurations: model_cfg, or a tower's part, is no dictionary")


def find_open_clip_weights(source: str | PathLike[str], **hub_arguments: Any) -> str:
    """Returns the path of the weights beside an open_clip_config.json, downloaded if need be.

    Raises:
        ValueError: there is no such file.
    """
    for name in OPEN_CLIP_WEIGHT_FILES:
        path = _find(source, name, hub_arguments)
        if path is not None:
            return path
    raise ValueError(f"{source} has an {OPEN_CLIP_CONFIG_FILE}, but none of {', '.join(OPEN_CLIP_WEIGHT_FILES)}")


def read_open_clip_weights(path: str | PathLike[str], trust_pickle: bool = False) -> dict[str, Tensor]:
    """Returns the tensors of a file of OpenCLIP's weights, also of a checkpoint of its training.

    Args:
        path: a .safetensors file or a pickle.
        trust_pickle: see `read_tensors`.

    Raises:
        ValueError: the file is damaged or needs more than tensors.
    """
    weights = read_tensors(path, trust_pickle)
    weights = weights.get("state_dict", weights)
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}


def translate_open_clip_config(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of the `ClipHfConfig` that an open_clip_config.json describes.

    Args:
        content: what `read_open_clip_config` returns.

    Raises:
        ValueError: it describes another kind of model than CLIP's; the message says which.
    """
    model_config = content["model_cfg"]
    _refuse_other_kinds(model_config)
    vision, text = model_config["vision_cfg"], model_config["text_cfg"]
    hidden_act = "quick_gelu" if model_config.get("quick_gelu") else "gelu"
    projection = {"projection_dim": model_config["embed_dim"]}
    text_width = text.get("width", 512)
    text_config = {
        "vocab_size": text.get("vocab_size", 49408),
        "max_position_embeddings": text.get("context_length", 77),
        "hidden_size": text_width,
        "intermediate_size": int(text_width * text.get("mlp_ratio", 4.0)),
        "num_hidden_layers": text.get("layers", 12),
        "num_attention_heads": text.get("heads", 8),
        "hidden_act": hidden_act,
        **projection,
    }
    preprocessing = content.get("preprocess_cfg") or {}
    normalization = {f"image_{name}": preprocessing[name] for name in ("mean", "std") if preprocessing.get(name)}
    config = {
        "model_type": "clip_hf",
        "text_config": text_config,
        "vision_config": _translate_image_tower(vision, hidden_act) | normalization | projection,
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
    size = _square(content["model_cfg"]["vision_cfg"].get("image_size", 224))
    resize_mode, filter_name = (
        preprocessing.get("resize_mode", "shortest"),
        preprocessing.get("interpolation", "bicubic"),
    )
    sizes = open_clip_sizes(size)
    if resize_mode not in sizes or filter_name not in RESAMPLE:
        raise ValueError(
            f"preprocess_cfg asks for resize_mode '{resize_mode}' and interpolation '{filter_name}', but there are "
            f"{', '.join(sizes)} and {', '.join(RESAMPLE)}"
        )
    options = {
        "size": sizes[resize_mode],
        "crop_size": {"height": size, "width": size},
        "resample": RESAMPLE[filter_name],
    }
    return options | {f"image_{name}": preprocessing[name] for name in ("mean", "std") if preprocessing.get(name)}


def open_clip_sizes(image_size: int) -> dict[str, dict[str, int]]:
    """Returns the image processor's `size` for each resize mode of OpenCLIP that it has."""
    return {"shortest": {"shortest_edge": image_size}, "squash": {"height": image_size, "width": image_size}}


def _find(source: str | PathLike[str], name: str, hub_arguments: dict[str, Any]) -> str | None:
    arguments = {key: value for key, value in hub_arguments.items() if key in HUB_ARGUMENTS and value is not None}
    return cached_file(str(source), name, _raise_exceptions_for_missing_entries=False, **arguments)


def _translate_image_tower(vision: dict[str, Any], hidden_act: str) -> dict[str, Any]:
    layers, width = vision.get("layers", 12), vision.get("width", 768)
    image_size, head_width = _square(vision.get("image_size", 224)), vision.get("head_width", 64)
    if isinstance(layers, list | tuple):
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
        "patch_size": _square(vision.get("patch_size", 16)),
        "hidden_size": width,
        "intermediate_size": int(width * vision.get("mlp_ratio", 4.0)),
        "num_hidden_layers": layers,
        "num_attention_heads": width // head_width,
        "hidden_act": hidden_act,
    }


def _square(size: int | list[int]) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"OpenCLIP's configuration says image_size or patch_size {size}, but it must be a square")
    return sides.pop()


def _refuse_other_kinds(model_config: dict[str, Any]) -> None:
    kind = _kind_of(model_config)
    if kind is not None:
        raise ValueError(f"OpenCLIP's configuration describes {kind}, but ClipHfModel is CLIP as published")
    for part, fields in (("vision_cfg", _VISION_FIELDS), ("text_cfg", _TEXT_FIELDS)):
        for name, value in model_config[part].items():
            if name not in fields | _WITHOUT_EFFECT and value and value not in _PUBLISHED.get(name, ()):
                raise ValueError(
                    f"OpenCLIP's configuration says {part}.{name}={value!r}, which CLIP as published has not"
                )


def _kind_of(model_config: dict[str, Any]) -> str | None:
    """Returns the name of the kind of model, None for a CLIP as far as these fields say."""
    vision, text = model_config["vision_cfg"], model_config["text_cfg"]
    timm_name = vision.get("timm_model_name") or ""
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
