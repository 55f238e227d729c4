"""The ViT image tower: patches to one feature (CLIP paper, section 2.4).

It differs from the ViT of Dosovitskiy et al. by a layer norm before the Transformer and by its initialisation.
Shapes: B batch, C channels, H and W pixels, L = 1 + patches, D width, E joint embedding.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_clip_hf_towers import ClipHfViTConfig
from .conversion_clip_hf import interpolate_positions
from .modeling_clip_hf_base import ClipHfImageModel, ClipHfImageOutput, normalize_pixels, require_known_arguments
from .modeling_clip_hf_transformer import ClipHfAttention, ClipHfTransformerLayer, init_transformer_module


class ClipHfPatchEmbedding(nn.Conv2d):
    """The map from patches to the residual stream: a convolution whose stride is the size of its kernel.

    Its windows do not overlap, so it is one product of matrices. Kernels of convolutions, made for small windows, take
    longer.
    """

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns (B, D, H // P, W // P) for pixels (B, C, H, W): as a convolution, it maps whole patches alone."""
        height, width = self.kernel_size
        rows, columns = pixel_values.shape[-2] // height, pixel_values.shape[-1] // width
        pixels = pixel_values[..., : rows * height, : columns * width].unflatten(3, (columns, width))
        patches = pixels.unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5)  # (B, rows, columns, C, P, P)
        mapped = nn.functional.linear(patches.flatten(3).flatten(1, 2), self.weight.flatten(1), self.bias)
        return mapped.transpose(1, 2).unflatten(2, (rows, columns))


class ClipHfViTEmbeddings(nn.Module):
    """Patches, the class embedding before them, and positions.

    Attributes:
        patch_dropout: share of each image's patches that is left out in training (FLIP, arXiv 2212.00794). Training
            sets it: no configuration does.
    """

    patch_dropout: float

    def __init__(self, config: ClipHfViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_dropout = 0.0
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.patch_embedding = ClipHfPatchEmbedding(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Parameter(torch.empty(1 + config.grid_size**2, config.hidden_size))

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Returns (B, L, D) for pixels (B, C, H, W); L is smaller where patches are left out.

        Raises:
            ValueError: the pixels are not of the configured size and `interpolate_pos_encoding` is off.
        """
        config = self.config
        if not interpolate_pos_encoding and pixel_values.shape[-2:] != (config.image_size, config.image_size):
            raise ValueError(
                f"images are {tuple(pixel_values.shape[-2:])} pixels, but the model was made for "
                f"{config.image_size} x {config.image_size}: resize them with the image processor, or pass "
                "interpolate_pos_encoding=True"
            )
        pixel_values = normalize_pixels(pixel_values, config, self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixel_values)  # (B, D, H / P, W / P)
        class_embedding = self.class_embedding.expand(patches.shape[0], 1, -1)
        embeddings = torch.cat([class_embedding, patches.flatten(2).transpose(1, 2)], dim=1)
        embeddings = embeddings + interpolate_positions(self.position_embedding, *patches.shape[-2:])
        if self.training and self.patch_dropout > 0:
            embeddings = _drop_patches(embeddings, self.patch_dropout)
        return embeddings


def _drop_patches(embeddings: Tensor, share: float) -> Tensor:
    # Positions are in the embeddings already, so nothing depends on the order of what stays.
    num_patches = embeddings.shape[1] - 1
    num_kept = max(1, round(num_patches * (1 - share)))
    kept = torch.rand(len(embeddings), num_patches, device=embeddings.device).topk(num_kept).indices + 1
    kept = torch.cat([kept.new_zeros(len(kept), 1), kept], dim=1)  # the class embedding always
    return embeddings.gather(1, kept.unsqueeze(-1).expand(-1, -1, embeddings.shape[-1]))


class ClipHfViTModel(ClipHfImageModel):
    """The ViT image tower, with a projection into the joint space if its configuration names one.

    Opened from a joint checkpoint, it takes the image half of it.

    Args:
        config: widths, depth, patch and image size.
    """

    config: ClipHfViTConfig
    _no_split_modules = ["ClipHfViTEmbeddings", "ClipHfTransformerLayer"]
    _can_record_outputs = {"hidden_states": ClipHfTransformerLayer, "attentions": ClipHfAttention}

    def __init__(self, config: ClipHfViTConfig) -> None:
        super().__init__(config)
        self.embeddings = ClipHfViTEmbeddings(config)
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(ClipHfTransformerLayer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = (
            nn.Linear(config.hidden_size, config.projection_dim, bias=False) if config.projection_dim else None
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the map from patches to the residual stream."""
        return self.embeddings.patch_embedding

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool = False,
        pooled_only: bool = False,
        **kwargs: Any,
    ) -> ClipHfImageOutput:
        """Returns the feature of each image.

        Args:
            pixel_values: (B, C, H, W), uint8 raw or floating point normalised.
            interpolate_pos_encoding: take images of any size, positions interpolated to their grid of patches.
            pooled_only: compute the last block at the class embedding alone, and return no `last_hidden_state`.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, as in transformers.

        Raises:
            TypeError: an argument is unknown.
            ValueError: the pixels have the wrong shape or type.
        """
        require_known_arguments(self, kwargs)
        hidden_states = self.pre_layernorm(self.embeddings(pixel_values, interpolate_pos_encoding))
        first = (
            torch.zeros(len(hidden_states), 1, dtype=torch.long, device=hidden_states.device) if pooled_only else None
        )
        *layers, last = self.layers
        for layer in layers:
            hidden_states = layer(hidden_states, None, **kwargs)
        hidden_states = last(hidden_states, None, first, **kwargs)
        feature = self.post_layernorm(hidden_states[:, 0])
        return ClipHfImageOutput(
            last_hidden_state=None if pooled_only else hidden_states,
            pooler_output=feature,
            image_embeds=None if self.projection is None else self.projection(feature),
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draws the initial weights.

        The paper mentions an initialisation of its own for the ViT and does not print it. Ours: the text tower's
        formulas with the ViT's width and depth, class and position embeddings at width^-0.5 (the public code), torch's
        default for the patch embedding.
        """
        super()._init_weights(module)
        init_transformer_module(module)
        if isinstance(module, ClipHfViTEmbeddings):
            init.normal_(module.class_embedding, std=self.config.hidden_size**-0.5)
            init.normal_(module.position_embedding, std=self.config.hidden_size**-0.5)
        elif module is self and self.projection is not None:
            init.normal_(self.projection.weight, std=self.config.hidden_size**-0.5)


ClipHfViTModel.register_for_auto_class("AutoModel")
