"""How the parameters of transformers' CLIP, OpenAI's CLIP and OpenCLIP are named here.

The tables are registered with transformers' checkpoint loader, one per class, so that `from_pretrained` reads all
three layouts and `save_pretrained(..., save_original_format=True)` writes back the names that were read: transformers
then reverses the used rows from last to first, so a row that names one weight comes after a wider one that would take
it. The joint model's table sends each key to its tower; a tower's table renames inside the tower and also serves a
tower opened by itself.

Names in the other layouts: openai/CLIP clip/model.py@d05afc4, transformers models/clip/modeling_clip.py@5.23.0.
OpenCLIP's default layout is OpenAI's; its "custom text" layout puts the text tower under `text.`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    Transpose,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
)

TRANSFORMERS_MODEL_TYPES = ("clip", "clip_text_model", "clip_vision_model")
# transformers wrote this end-of-text id into the released configurations; the models pooled at the largest id instead.
LEGACY_EOS_TOKEN_ID = 2

_TRANSFORMER_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
)


def translate_transformers_config(
    config_dict: dict[str, Any], normalization: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Returns the configuration of a transformers CLIP model, joint or one tower, as ours.

    Args:
        config_dict: a config.json whose `model_type` is one of `TRANSFORMERS_MODEL_TYPES`.
        normalization: `image_mean` and `image_std`, which it does not hold; OpenAI's if not given.
    """
    model_type = config_dict["model_type"]
    dtype = {"dtype": config_dict.get("dtype", config_dict.get("torch_dtype"))}
    if model_type != "clip":
        with_projection = any("WithProjection" in name for name in config_dict.get("architectures") or ())
        if model_type == "clip_text_model":
            text_config = CLIPTextConfig(**config_dict)
            return _translate_text(text_config, text_config.projection_dim if with_projection else None) | dtype
        vision_config = CLIPVisionConfig(**config_dict)
        projection_dim = vision_config.projection_dim if with_projection else None
        return _translate_vision(vision_config, projection_dim) | dict(normalization) | dtype
    config = CLIPConfig(**config_dict)
    return {
        "model_type": "clip_hf",
        "text_config": _translate_text(config.text_config, config.projection_dim),
        "vision_config": _translate_vision(config.vision_config, config.projection_dim) | dict(normalization),
        "projection_dim": config.projection_dim,
        "logit_scale_init_value": config.logit_scale_init_value,
    } | dtype


def _translate_text(config: CLIPTextConfig, projection_dim: int | None) -> dict[str, Any]:
    fields = {name: getattr(config, name) for name in (*_TRANSFORMER_FIELDS, "vocab_size", "max_position_embeddings")}
    if config.eos_token_id != LEGACY_EOS_TOKEN_ID:
        fields |= {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    return {"model_type": "clip_hf_text", "projection_dim": projection_dim} | fields


def _translate_vision(config: CLIPVisionConfig, projection_dim: int | None) -> dict[str, Any]:
    fields = {
        name: getattr(config, name) for name in (*_TRANSFORMER_FIELDS, "image_size", "patch_size", "num_channels")
    }
    return {"model_type": "clip_hf_vit", "projection_dim": projection_dim} | fields


class Reshape(ConversionOps):
    """Gives a tensor another shape of the same size: other layouts hold the temperature as (), we as (1,)."""

    def __init__(self, shape: tuple[int, ...], original_shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.original_shape = original_shape

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Returns the one tensor in the new shape."""
        return {target_patterns[0]: _only_tensor(input_dict).reshape(self.shape)}

    @property
    def reverse_op(self) -> ConversionOps:
        """The reshape back."""
        return Reshape(self.original_shape, self.shape)


class ResizePositions(ConversionOps):
    """Interpolates image positions on load when the model's resolution is not the checkpoint's."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Returns the positions for the grid of the model being loaded."""
        config = kwargs["config"]
        vision_config = config.vision_config if "vision_config" in config.sub_configs else config
        grid_size = vision_config.grid_size
        return {target_patterns[0]: interpolate_positions(_only_tensor(input_dict), grid_size, grid_size)}

    @property
    def reverse_op(self) -> ConversionOps:
        """Saving keeps the positions of the model."""
        return self


def _only_tensor(input_dict: dict[str, Any]) -> Tensor:
    (tensors,) = input_dict.values()
    return tensors[0] if isinstance(tensors, list) else tensors


def interpolate_positions(positions: Tensor, height: int, width: int) -> Tensor:
    """Returns the positions of a square grid, the first row apart, interpolated (bicubic) to another grid.

    Args:
        positions: (1 + S * S, D), the class token's or mean feature's position first, then the grid row by row.
        height: rows of the new grid.
        width: columns of the new grid.

    Returns:
        (1 + height * width, D); `positions` itself where the grid is the same.
    """
    side = round((positions.shape[0] - 1) ** 0.5)
    if (height, width) == (side, side):
        return positions
    grid = positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    # Interpolation in half precision is coarse, and not implemented everywhere.
    grid = nn.functional.interpolate(grid.float(), size=(height, width), mode="bicubic", align_corners=False)
    grid = grid.permute(0, 2, 3, 1).reshape(height * width, -1).to(positions.dtype)
    return torch.cat([positions[:1], grid])


def _transformer_table() -> list[WeightTransform]:
    qkv = [
        WeightConverter(
            [f"self_attn.{name}_proj.{kind}" for name in "qkv"], f"self_attn.qkv.{kind}", [Concatenate(dim=0)]
        )
        for kind in ("weight", "bias")
    ]
    return [
        WeightRenaming(r"^encoder\.layers\.", "layers."),
        WeightRenaming(r"^openai\.transformer\.resblocks\.", "layers."),
        WeightRenaming(r"\.ln_1\.", ".layer_norm1."),
        WeightRenaming(r"\.ln_2\.", ".layer_norm2."),
        WeightRenaming(r"\.attn\.in_proj_", ".self_attn.qkv."),
        WeightRenaming(r"\.attn\.out_proj\.", ".self_attn.out_proj."),
        WeightRenaming(r"\.mlp\.c_fc\.", ".mlp.fc1."),
        WeightRenaming(r"\.mlp\.c_proj\.", ".mlp.fc2."),
        *qkv,
    ]


# Both towers of OpenAI's layout say `transformer.resblocks`: the intermediate prefix `openai.` keeps them apart.
_IMAGE_TOWER_TABLE: list[WeightTransform] = [
    WeightRenaming(r"^vision_model\.", r"^(?!visual_projection\.)"),  # the look-ahead counts in reverse alone
    WeightRenaming(r"^visual_projection\.", "projection."),
    WeightRenaming(r"^visual\.", "openai."),
]

VIT_TABLE: list[WeightTransform] = [
    *_IMAGE_TOWER_TABLE,
    WeightRenaming(r"^openai\.class_embedding", "embeddings.class_embedding"),
    WeightRenaming(r"^openai\.positional_embedding", "embeddings.position_embedding"),
    WeightRenaming(r"^openai\.conv1\.", "embeddings.patch_embedding."),
    WeightRenaming(r"^openai\.ln_pre\.", "pre_layernorm."),
    WeightRenaming(r"^openai\.ln_post\.", "post_layernorm."),
    WeightRenaming(r"^embeddings\.position_embedding\.weight", "embeddings.position_embedding"),
    WeightRenaming(r"^pre_layrnorm\.", "pre_layernorm."),
    *_transformer_table(),
    # In reverse, transformers finds a converter by the text of its pattern: the text tower's has no backslash.
    WeightConverter(r"^openai\.proj", r"projection\.weight", [Transpose(0, 1)]),
    WeightConverter(r"^embeddings\.position_embedding", "embeddings.position_embedding", [ResizePositions()]),
]

RESNET_TABLE: list[WeightTransform] = [
    *_IMAGE_TOWER_TABLE,
    WeightRenaming(r"^openai\.attnpool\.c_proj\.", "projection."),
    WeightRenaming(r"^openai\.attnpool\.", "attention_pool."),
    WeightRenaming(r"^attention_pool\.positional_embedding", "attention_pool.position_embedding"),
    WeightRenaming(r"^openai\.(layer\d)\.", r"\1."),
    WeightRenaming(r"^openai\.", "stem."),
    WeightConverter(r"^attention_pool\.position_embedding", "attention_pool.position_embedding", [ResizePositions()]),
]

TEXT_TABLE: list[WeightTransform] = [
    WeightRenaming(r"^text_model\.", r"^(?!text_projection\.)"),
    WeightRenaming(r"^text_projection\.weight", "projection.weight"),
    WeightRenaming(r"^text\.", ""),
    WeightRenaming(r"^(token_embedding|positional_embedding|transformer|ln_final|text_projection)", r"openai.\1"),
    WeightRenaming(r"^openai\.token_embedding\.", "embeddings.token_embedding."),
    WeightRenaming(r"^openai\.positional_embedding", "embeddings.position_embedding"),
    WeightRenaming(r"^openai\.ln_final\.", "final_layer_norm."),
    WeightRenaming(r"^embeddings\.position_embedding\.weight", "embeddings.position_embedding"),
    *_transformer_table(),
    WeightConverter(r"^openai\.text_projection", "projection.weight", [Transpose(0, 1)]),
]

JOINT_TABLE: list[WeightTransform] = [
    WeightRenaming(r"^visual_projection\.", "vision_model.projection."),
    WeightRenaming(r"^visual\.", "vision_model.openai."),
    WeightRenaming(r"^text\.", "text_model."),
    WeightRenaming(r"^(token_embedding|positional_embedding|transformer|ln_final|text_projection)", r"text_model.\1"),
    WeightConverter(r"^logit_scale", "logit_scale", [Reshape((1,), ())]),
]

# What other layouts hold beside weights: position indices (older transformers), three numbers (OpenAI's archives).
IGNORED_KEYS = (r"(^|\.)position_ids$", r"^(input_resolution|context_length|vocab_size)$", r"(^|\.)attn_mask$")
# What a joint checkpoint holds beside an image tower, beside a text tower, and beside a tower without projection.
TEXT_TOWER_KEYS = (
    r"^(text_model|text|token_embedding|positional_embedding|transformer|ln_final|text_projection)(\.|$)",
    r"^logit_(scale|bias)$",
)
IMAGE_TOWER_KEYS = (r"^(vision_model|visual|visual_projection)(\.|$)", r"^logit_(scale|bias)$")
PROJECTION_KEYS = (r"^projection\.",)

for class_name, table in (
    ("ClipHfModel", JOINT_TABLE),
    ("ClipHfTextModel", TEXT_TABLE),
    ("ClipHfViTModel", VIT_TABLE),
    ("ClipHfResNetModel", RESNET_TABLE),
):
    # A checkpoint's own copy of this file registers the same tables again.
    register_checkpoint_conversion_mapping(class_name, table, overwrite=True)
