"""State dicts from one layout to another, tensor by tensor.

The four layouts name the same tensors: ours, transformers' (which keeps query, key and value apart), and OpenAI's and
OpenCLIP's, which are one (projections transposed). Names: openai/CLIP clip/model.py@d05afc4, transformers
models/clip/modeling_clip.py@5.23.0. `clip_hf.model.conversion_clip_hf` says the same to transformers' loader, which
cannot keep two types in one model, nor write what it did not read.
"""

import re
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.conversion_clip_hf import IGNORED_KEYS
from clip_hf.model.modeling_clip_hf import ClipHfModel

Layout = Literal["clip_hf", "transformers", "open_clip", "openai"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

# One after the other, from our names to theirs.
_TO_OPENAI = (
    (r"^text_model\.projection\.weight$", "text_projection"),
    (r"^vision_model\.(stem\.|embeddings\.)?", "visual."),
    (r"^text_model\.(embeddings\.)?", ""),
    (r"(^|\.)layers\.", r"\1transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.self_attn\.qkv\.", ".attn.in_proj_"),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"^final_layer_norm\.", "ln_final."),
    (r"\.pre_layernorm\.", ".ln_pre."),
    (r"\.post_layernorm\.", ".ln_post."),
    (r"\.patch_embedding\.", ".conv1."),
    (r"\.attention_pool\.", ".attnpool."),
    (r"position_embedding$", "positional_embedding"),
)
_TO_OPENAI_VIT = (*_TO_OPENAI, (r"^visual\.projection\.weight$", "visual.proj"))
_TO_OPENAI_RESNET = (*_TO_OPENAI, (r"^visual\.projection\.", "visual.attnpool.c_proj."))
_TO_TRANSFORMERS = (
    (r"^text_model\.projection\.", "text_projection."),
    (r"^vision_model\.projection\.", "visual_projection."),
    (r"_model\.layers\.", "_model.encoder.layers."),
    (r"\.pre_layernorm\.", ".pre_layrnorm."),  # their spelling
    (r"position_embedding$", "position_embedding.weight"),
)


def tensor_shapes(config: ClipHfConfig) -> dict[str, torch.Size]:
    """Returns the shape of every tensor of a model, by our names."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in ClipHfModel(config).state_dict().items()}


def foreign_names(name: str, layout: Layout, config: ClipHfConfig) -> tuple[str, ...]:
    """Returns what a tensor of ours is called in another layout: three names where the layout cuts it in three.

    Args:
        name: of one of the model's tensors.
        layout: whose names are asked for.
        config: of the model.
    """
    if layout == "clip_hf":
        return (name,)
    table = _TO_TRANSFORMERS if layout == "transformers" else (_TO_OPENAI_VIT if is_vit(config) else _TO_OPENAI_RESNET)
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    if layout == "transformers" and ".qkv." in name:
        return tuple(name.replace(".qkv.", f".{part}_proj.") for part in "qkv")
    return (name,)


def to_layout(weights: Mapping[str, Tensor], layout: Layout, config: ClipHfConfig) -> dict[str, Tensor]:
    """Returns the weights of a model in another layout, bit by bit and in the types that they have.

    Args:
        weights: tensors by our names.
        layout: whose names the result has.
        config: of the model.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        names = foreign_names(name, layout, config)
        if name == "logit_scale" and layout != "clip_hf":
            tensor = tensor.reshape(())
        if _is_transposed(name, layout, config):
            tensor = tensor.T.contiguous()
        # Clones: files of several tensors are not written from views into one.
        parts = [part.clone() for part in tensor.chunk(len(names))] if names[1:] else [tensor]
        converted |= zip(names, parts, strict=True)
    return converted


def from_layout(weights: Mapping[str, Tensor], layout: Layout, config: ClipHfConfig) -> dict[str, Tensor]:
    """Returns the weights of a model by our names, bit by bit and in the types that they have.

    Args:
        weights: tensors by the names of `layout`; OpenCLIP's in either of its two.
        layout: whose names `weights` have.
        config: of the model.

    Raises:
        ValueError: a tensor is missing, is left over, or has another shape than the configuration gives it.
    """
    if layout == "open_clip" and not any(name.startswith("token_embedding.") for name in weights):
        weights = {name.removeprefix("text."): tensor for name, tensor in weights.items()}
    left_over = {name for name in weights if not is_ignored(name)}
    missing, wrong = [], []
    converted: dict[str, Tensor] = {}
    for name, shape in tensor_shapes(config).items():
        names = foreign_names(name, layout, config)
        left_over -= set(names)
        missing += [part for part in names if part not in weights]
        if missing:
            continue  # to collect what else is missing
        parts = [_as_ours(weights[part], name, layout, config) for part in names]
        part_shape = torch.Size([shape[0] // len(names), *shape[1:]]) if names[1:] else shape
        wrong += [
            f"{part} (as ours {list(tensor.shape)} instead of {list(part_shape)})"
            for part, tensor in zip(names, parts, strict=True)
            if tensor.shape != part_shape
        ]
        if not wrong:
            converted[name] = torch.cat(parts) if parts[1:] else parts[0]
    _raise_if_any(missing=missing, superfluous=sorted(left_over), wrongly_shaped=wrong)
    return converted


def is_ignored(name: str) -> bool:
    """Returns whether a tensor of a foreign checkpoint is no weight: positions, masks, three numbers of OpenAI's."""
    return any(re.search(pattern, name) for pattern in IGNORED_KEYS)


def is_vit(config: ClipHfConfig) -> bool:
    """Returns whether the image tower is a ViT, and not a ResNet."""
    return config.vision_config.model_type == "clip_hf_vit"


def _as_ours(tensor: Tensor, name: str, layout: Layout, config: ClipHfConfig) -> Tensor:
    if name == "logit_scale" and tensor.numel() == 1:
        return tensor.reshape(1)
    return tensor.T.contiguous() if _is_transposed(name, layout, config) and tensor.dim() == 2 else tensor


def _is_transposed(name: str, layout: Layout, config: ClipHfConfig) -> bool:
    is_projection = name == "text_model.projection.weight" or (
        name == "vision_model.projection.weight" and is_vit(config)
    )
    return is_projection and layout in ("open_clip", "openai")


def _raise_if_any(**problems: list[str]) -> None:
    texts = [
        f"{len(names)} {kind.replace('_', ' ')}: {', '.join(names[:5])}{' ...' if names[5:] else ''}"
        for kind, names in problems.items()
        if names
    ]
    if texts:
        raise ValueError(f"the weights do not fit the configuration; {'; '.join(texts)}")
