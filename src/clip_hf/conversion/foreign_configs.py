"""Our configuration as other implementations write theirs, and what each of them cannot say."""

from typing import Any, cast

import numpy as np
from transformers import CLIPConfig

from clip_hf.conversion.layouts import Layout, is_vit
from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.configuration_clip_hf_towers import ClipHfTransformerConfig, default_num_heads
from clip_hf.model.conversion_clip_hf import LEGACY_EOS_TOKEN_ID
from clip_hf.model.image_processing_clip_hf import ClipHfImageProcessor
from clip_hf.model.open_clip_checkpoint_clip_hf import RESAMPLE, open_clip_sizes

_TRANSFORMER_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "projection_dim",
)
_TEXT_FIELDS = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
_IMAGE_FIELDS = ("image_size", "patch_size", "num_channels")
_ACTIVATIONS = ({"quick_gelu"}, {"gelu"})


def to_transformers_config(config: ClipHfConfig) -> CLIPConfig:
    """Returns transformers' configuration of the same model.

    Raises:
        ValueError: transformers' CLIP cannot be this model.
    """
    _require("transformers", "its CLIPModel has no ResNet, only a ViT as image tower", is_vit(config))
    eos_token_id = config.text_config.eos_token_id
    _require(
        "transformers", "its CLIPModel reads id 2 as the sign of an old file", eos_token_id != LEGACY_EOS_TOKEN_ID
    )
    return CLIPConfig(
        text_config={name: getattr(config.text_config, name) for name in (*_TRANSFORMER_FIELDS, *_TEXT_FIELDS)},
        vision_config={name: getattr(config.vision_config, name) for name in (*_TRANSFORMER_FIELDS, *_IMAGE_FIELDS)},
        projection_dim=config.projection_dim,
        logit_scale_init_value=config.logit_scale_init_value,
        architectures=["CLIPModel"],
        dtype=config.dtype,
    )


def to_open_clip_config(config: ClipHfConfig, image_processor: ClipHfImageProcessor) -> dict[str, Any]:
    """Returns the content of the open_clip_config.json of the same model.

    Args:
        config: of the model.
        image_processor: what its images pass through.

    Raises:
        ValueError: OpenCLIP cannot express the model, or not how its images are prepared.
    """
    preprocessing = _to_preprocess_config(image_processor, config.vision_config.image_size)
    return {"model_cfg": to_open_clip_model_config(config), "preprocess_cfg": preprocessing}


def to_open_clip_model_config(config: ClipHfConfig) -> dict[str, Any]:
    """Returns the arguments of OpenCLIP's `CLIP` for the same model.

    Raises:
        ValueError: OpenCLIP cannot express the model.
    """
    _require_common_traits("open_clip", config)
    text, vision = config.text_config, config.vision_config
    text_config = {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
    }
    vision_config = {"image_size": vision.image_size, "head_width": vision.hidden_size // vision.num_attention_heads}
    if is_vit(config):
        vision_config |= {"layers": vision.num_hidden_layers, "width": vision.hidden_size}
        vision_config |= {"patch_size": vision.patch_size} | _mlp_ratio(vision)
    else:
        vision_config |= {"layers": list(vision.depths), "width": vision.width, "patch_size": None}
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": text.hidden_act == "quick_gelu",
        "vision_cfg": vision_config,
        "text_cfg": text_config | _mlp_ratio(text),
    }


def require_openai_architecture(config: ClipHfConfig, image_processor: ClipHfImageProcessor) -> None:
    """Raises ValueError unless the model is one of OpenAI's code, which knows a model by its weights' shapes alone."""
    text, vision = config.text_config, config.vision_config
    _require_common_traits("openai", config)
    heads = [tower.num_attention_heads == default_num_heads(tower.hidden_size) for tower in (text, vision)]
    _require("openai", "its code has heads of 64 channels", all(heads))
    transformers = [text, vision] if is_vit(config) else [text]
    _require("openai", "its code has QuickGELU alone", text.hidden_act == "quick_gelu")
    _require("openai", "its code has MLPs of 4 times the width", not any(map(_mlp_ratio, transformers)))
    published = _to_preprocess_config(
        ClipHfImageProcessor(size=vision.image_size, crop_size=vision.image_size), vision.image_size
    )
    found = _to_preprocess_config(image_processor, vision.image_size)
    _require("openai", f"its code prepares images in one way, which is not {found}", found == published)


def _require_common_traits(layout: Layout, config: ClipHfConfig) -> None:
    """Raises ValueError where the model has what neither OpenCLIP nor OpenAI can have."""
    text, vision = config.text_config, config.vision_config
    transformers = [text, vision] if is_vit(config) else [text]
    activations = {tower.hidden_act for tower in transformers}
    _require(layout, f"it has one of quick_gelu and gelu, not {activations}", activations in _ACTIVATIONS)
    _require(layout, "its layer norms add 1e-5", all(tower.layer_norm_eps == 1e-5 for tower in transformers))
    largest, end = text.vocab_size - 1, text.eos_token_id
    reason = f"it reads a text at its largest id, {largest} here, and this model at {end}"
    _require(layout, f"{reason}: ids behind that, as added tokens have, have no place there", end == largest)
    _require(layout, "its images have three channels", vision.num_channels == 3)


def _to_preprocess_config(image_processor: ClipHfImageProcessor, image_size: int) -> dict[str, Any]:
    options = image_processor.to_dict()
    modes = [mode for mode, size in open_clip_sizes(image_size).items() if size == options["size"]]
    filters = [name for name, number in RESAMPLE.items() if number == options["resample"]]
    is_usual = all(options[f"do_{step}"] for step in ("resize", "center_crop", "rescale", "normalize"))
    if not (modes and filters and is_usual):
        raise ValueError(
            f"neither OpenCLIP nor OpenAI can say how images are prepared: size {options['size']}, resample "
            f"{options['resample']}, or a step left out; they have {open_clip_sizes(image_size)} and {RESAMPLE}"
        )
    statistics = {name: np.broadcast_to(options[f"image_{name}"], 3).tolist() for name in ("mean", "std")}
    return statistics | {"interpolation": filters[0], "resize_mode": modes[0]}


def _mlp_ratio(tower: ClipHfTransformerConfig) -> dict[str, float]:
    inner, width = cast(int, tower.intermediate_size), tower.hidden_size
    # OpenCLIP multiplies and cuts off what is behind the point: half a channel keeps it from cutting one too many.
    return {} if inner == 4 * width else {"mlp_ratio": (inner + 0.5) / width}


def _require(layout: Layout, reason: str, condition: bool) -> None:
    if not condition:
        raise ValueError(f"this model cannot be written as {layout}: {reason}")
