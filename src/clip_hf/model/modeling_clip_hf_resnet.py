"""The modified ResNet image tower (CLIP paper, section 2.4).

It differs from torchvision's ResNet in three places: a stem of three convolutions (ResNet-D), blur pooling with a 2x2
box before every strided step, and attention pooling whose one query is the mean feature.
Shapes: B batch, C channels, H and W pixels, S = H / 32, D = 32 * width, E joint embedding.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .chunked_embedding_clip_hf import is_recomputing
from .configuration_clip_hf_towers import ClipHfResNetConfig
from .conversion_clip_hf import interpolate_positions
from .modeling_clip_hf_base import ClipHfImageModel, ClipHfImageOutput, normalize_pixels, require_known_arguments
from .modeling_clip_hf_transformer import attend

EXPANSION = 4


class ClipHfBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose running statistics move once per step, also where the forward is recomputed in the backward."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Returns (B, C, H, W), normalised, for (B, C, H, W)."""
        if self.training and is_recomputing():
            # Clones, not None: a recomputation must save the same tensors as the forward did.
            running_mean, running_var = self.running_mean.clone(), self.running_var.clone()
            return nn.functional.batch_norm(
                hidden_states, running_mean, running_var, self.weight, self.bias, True, self.momentum, self.eps
            )
        return super().forward(hidden_states)


class ClipHfStem(nn.Module):
    """Three 3x3 convolutions, the first with stride 2, then a 2x2 average: a quarter of the height and width."""

    def __init__(self, config: ClipHfResNetConfig) -> None:
        super().__init__()
        half = config.width // 2
        self.conv1 = nn.Conv2d(config.num_channels, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = ClipHfBatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = ClipHfBatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, config.width, 3, padding=1, bias=False)
        self.bn3 = ClipHfBatchNorm2d(config.width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns (B, width, H / 4, W / 4) for normalised pixels (B, C, H, W)."""
        hidden_states = self.bn1(self.conv1(pixel_values)).relu()
        hidden_states = self.bn2(self.conv2(hidden_states)).relu()
        hidden_states = self.bn3(self.conv3(hidden_states)).relu()
        return nn.functional.avg_pool2d(hidden_states, 2)


class ClipHfBottleneck(GradientCheckpointingLayer):
    """A residual bottleneck; where it strides, it averages 2x2 pixels before a convolution of stride 1."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = ClipHfBatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = ClipHfBatchNorm2d(channels)
        self.blur_pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = ClipHfBatchNorm2d(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            # The names are those of the released checkpoints.
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(in_channels, out_channels, 1, bias=False)),
                        ("1", ClipHfBatchNorm2d(out_channels)),
                    ]
                )
            )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Returns (B, 4 * channels, H / stride, W / stride) for (B, in_channels, H, W)."""
        residual = hidden_states if self.downsample is None else self.downsample(hidden_states)
        hidden_states = self.bn1(self.conv1(hidden_states)).relu()
        hidden_states = self.bn2(self.conv2(hidden_states)).relu()
        hidden_states = self.bn3(self.conv3(self.blur_pool(hidden_states)))
        return (hidden_states + residual).relu()


class ClipHfKeyProjection(nn.Linear):
    """The map from tokens to keys, or straight to the logits of one query.

    As q . (W x + b) = (W^T q) . x + q . b, one query needs no keys: W is applied to it, not to every token.
    """

    def forward(self, tokens: Tensor, query: Tensor | None = None) -> Tensor:
        """Returns keys (B, L, D) for tokens (B, L, D) or, for one query (B, H, D / H), its logits (B, H, L)."""
        if query is None:
            return super().forward(tokens)
        weight, heads = self.weight, query.shape[1:]
        if _is_packed(weight):
            return torch.einsum("bhd,blhd->bhl", query, super().forward(tokens).unflatten(-1, heads))
        logits = torch.einsum("bhd,hdc->bhc", query, weight.unflatten(0, heads)) @ tokens.transpose(1, 2)
        of_bias = (query * self.bias.unflatten(0, heads)).sum(dim=-1, keepdim=True)
        return logits + of_bias.to(logits.dtype)  # a softmax drops it, but so it has a gradient


class ClipHfValueProjection(nn.Linear):
    """The map from tokens to values, or straight to the values' mean by the attention of one query.

    As attention sums to one, sum_i a_i (W x_i + b) = W (sum_i a_i x_i) + b: tokens are averaged before W.
    """

    def forward(self, tokens: Tensor, attention: Tensor | None = None) -> Tensor:
        """Returns values (B, L, D) for tokens (B, L, D) or, for attention (B, H, L), the means of all heads (B, D)."""
        if attention is None:
            return super().forward(tokens)
        weight, heads = self.weight, (attention.shape[1], -1)
        if _is_packed(weight):
            return torch.einsum("bhl,blhd->bhd", attention, super().forward(tokens).unflatten(-1, heads)).flatten(1)
        means = torch.einsum("bhc,hdc->bhd", attention @ tokens, weight.unflatten(0, heads)).flatten(1)
        return means + self.bias.to(means.dtype)


def _is_packed(weight: Tensor) -> bool:
    # Quantization may leave a tensor of its own kind, which a linear map takes and nothing else does.
    return hasattr(weight, "__tensor_flatten__")


class ClipHfAttentionPool(nn.Module):
    """One layer of multi-head attention whose query is the mean over all positions.

    For one query attention is written out here, whichever implementation is configured. Where an adapter has taken the
    place of a projection, every token is mapped to a key and a value, and the configured implementation attends.
    """

    def __init__(self, config: ClipHfResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.attention_dropout = 0.0
        self.is_causal = False
        self.position_embedding = nn.Parameter(torch.empty(1 + config.grid_size**2, config.hidden_size))
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = ClipHfKeyProjection(config.hidden_size, config.hidden_size)
        self.v_proj = ClipHfValueProjection(config.hidden_size, config.hidden_size)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns (B, D) and the attention (B, H, 1, 1 + S * S) or None, for a feature map (B, D, S, S)."""
        positions = interpolate_positions(self.position_embedding, *feature_map.shape[-2:])
        tokens = feature_map.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + positions  # (B, 1 + S * S, D)
        query = self._split_heads(self.q_proj(tokens[:, :1]))
        if isinstance(self.k_proj, ClipHfKeyProjection) and isinstance(self.v_proj, ClipHfValueProjection):
            scaled = query.squeeze(2) * query.shape[-1] ** -0.5
            attention = self.k_proj(tokens, scaled).softmax(dim=-1).to(query.dtype)
            return self.v_proj(tokens, attention), attention.unsqueeze(2)
        key, value = self._split_heads(self.k_proj(tokens)), self._split_heads(self.v_proj(tokens))
        attended, attention = attend(self, query, key, value, None)
        return attended[:, 0], attention

    def _split_heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, L, D / H)


class ClipHfResNetModel(ClipHfImageModel):
    """The modified ResNet image tower, with a projection into the joint space if its configuration names one.

    Opened from a joint checkpoint, it takes the image half of it. The public code calls the projection
    `attnpool.c_proj`; it is the one of the nine models' projections that has a bias.

    Args:
        config: width, depths and image size.
    """

    config: ClipHfResNetConfig
    _no_split_modules = ["ClipHfStem", "ClipHfBottleneck", "ClipHfAttentionPool"]
    _can_record_outputs = {"hidden_states": ClipHfBottleneck, "attentions": ClipHfAttentionPool}

    def __init__(self, config: ClipHfResNetConfig) -> None:
        super().__init__(config)
        self.stem = ClipHfStem(config)
        in_channels = config.width
        for stage, depth in enumerate(config.depths):
            channels = config.width * 2**stage
            blocks = []
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(ClipHfBottleneck(in_channels, channels, stride))
                in_channels = EXPANSION * channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.attention_pool = ClipHfAttentionPool(config)
        self.projection = nn.Linear(config.hidden_size, config.projection_dim) if config.projection_dim else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the first convolution."""
        return self.stem.conv1

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
            interpolate_pos_encoding: take images of any size, positions interpolated to their feature map.
            pooled_only: return no `last_hidden_state`; the feature needs all of it here, unlike a ViT's.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, as in transformers.

        Raises:
            TypeError: an argument is unknown.
            ValueError: the pixels have the wrong shape or type.
        """
        require_known_arguments(self, kwargs)
        size = self.config.image_size
        if not interpolate_pos_encoding and pixel_values.shape[-2:] != (size, size):
            raise ValueError(
                f"images are {tuple(pixel_values.shape[-2:])} pixels, but the model was made for {size} x {size}; "
                "resize them with the image processor, or pass interpolate_pos_encoding=True"
            )
        feature_map = normalize_pixels(pixel_values, self.config, self.stem.conv1.weight.dtype)
        if not torch.is_grad_enabled():
            # A sixth less time on CPUs. Training gains nothing, and its gradients would lie unlike the parameters.
            feature_map = feature_map.contiguous(memory_format=torch.channels_last)
        feature_map = self.stem(feature_map)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                feature_map = block(feature_map)
        feature, _ = self.attention_pool(feature_map)
        return ClipHfImageOutput(
            last_hidden_state=None if pooled_only else feature_map,
            pooler_output=feature,
            image_embeds=None if self.projection is None else self.projection(feature),
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draws the initial weights of the public code (openai/CLIP clip/model.py:299-309@d05afc4)."""
        super()._init_weights(module)
        if isinstance(module, ClipHfBottleneck):
            init.zeros_(module.bn3.weight)
        elif isinstance(module, ClipHfAttentionPool):
            for weight in (
                module.position_embedding,
                module.q_proj.weight,
                module.k_proj.weight,
                module.v_proj.weight,
            ):
                init.normal_(weight, std=self.config.hidden_size**-0.5)
        elif module is self and self.projection is not None:
            init.normal_(self.projection.weight, std=self.config.hidden_size**-0.5)


ClipHfResNetModel.register_for_auto_class("AutoModel")
