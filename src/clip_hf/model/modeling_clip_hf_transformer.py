"""The residual attention blocks of both Transformers, text and ViT (CLIP paper, sections 2.4 and 2.5).

Shapes: B batch, L positions, D width, H heads.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_clip_hf_towers import ClipHfTransformerConfig
from .prefixes_clip_hf import Prefixes

QUICK_GELU_SLOPE = 1.702


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Returns attention written out, and its weights: the reference of every faster implementation.

    Args:
        module: tells whether dropout is active.
        query: (B, H, L, D / H).
        key: (B, H, M, D / H).
        value: (B, H, M, D / H).
        attention_mask: added to the logits, (B, 1, L, M), or None.
        scaling: multiplies the logits.
        dropout: probability of dropping a weight.
        kwargs: hints to other implementations.

    Returns:
        (B, L, H, D / H) and the weights (B, H, L, M).
    """
    weights = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Returns attention by the implementation that `module.config` names, and its weights where that gives them.

    Args:
        module: an attention module with `config`, `attention_dropout` and `is_causal`.
        query: (B, H, L, D / H).
        key: (B, H, M, D / H).
        value: (B, H, M, D / H).
        attention_mask: as the implementation takes it, or None.
        kwargs: hints to the implementation, such as `is_causal`.

    Returns:
        (B, L, D) and the weights (B, H, L, M) or None.
    """
    implementation: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
        module.config._attn_implementation, eager_attention_forward
    )
    attended, weights = implementation(
        module,
        query,
        key,
        value,
        attention_mask,
        scaling=query.shape[-1] ** -0.5,
        dropout=module.attention_dropout if module.training else 0.0,
        **kwargs,
    )
    return attended.flatten(2), weights


class _QuickGelu(torch.autograd.Function):
    """Keeps its input alone for the backward pass, where the plain formula keeps three tensors of the MLP's width."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor) -> Tensor:
        return (QUICK_GELU_SLOPE * inputs).sigmoid_().mul_(inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        scaled = QUICK_GELU_SLOPE * ctx.saved_tensors[0]
        if torch.is_grad_enabled():  # for a second derivative, which torch's kernel does not have
            sigmoid = scaled.sigmoid()
            return gradient * sigmoid * (1 + scaled * (1 - sigmoid))
        # With u = slope x, x sigmoid(u) is silu(u) / slope, and the slopes of the chain rule cancel.
        return torch.ops.aten.silu_backward(gradient, scaled)


def quick_gelu(inputs: Tensor) -> Tensor:
    """Returns x sigmoid(1.702 x), which approximates GELU (Hendrycks and Gimpel, arXiv 1606.08415, section 2).

    Args:
        inputs: of any shape.
    """
    if torch.compiler.is_compiling():  # compilers fuse the formula, and exporters want it plain
        return inputs * torch.sigmoid(QUICK_GELU_SLOPE * inputs)
    return _QuickGelu.apply(inputs)


def select_positions(hidden_states: Tensor, positions: Tensor | None) -> Tensor:
    """Returns some positions of each row.

    Args:
        hidden_states: (B, L, D).
        positions: (B, N), or None for all of them.

    Returns:
        (B, N, D), or the hidden states as they are.
    """
    if positions is None:
        return hidden_states
    positions = positions.to(hidden_states.device)  # device_map may place layers elsewhere than the ids
    return hidden_states[torch.arange(positions.shape[0], device=positions.device)[:, None], positions]


class ClipHfAttention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values."""

    def __init__(self, config: ClipHfTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        prefixes: Prefixes | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (B, L, D) and the attention weights, for hidden states (B, L, D); see `ClipHfTransformerLayer`."""
        qkv = self.qkv(hidden_states)
        if prefixes is not None:
            qkv = prefixes.spread(qkv)
        qkv = qkv.view(*qkv.shape[:2], 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, L, D / H)
        attended, weights = attend(self, query, key, value, attention_mask, **kwargs)
        if prefixes is not None:
            attended = prefixes.gather(attended)
        return self.out_proj(select_positions(attended, positions)), weights


class ClipHfMLP(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, config: ClipHfTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = quick_gelu if config.hidden_act == "quick_gelu" else ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Returns (B, L, D) for (B, L, D)."""
        return self.fc2(self.activation(self.fc1(hidden_states)))


class ClipHfTransformerLayer(GradientCheckpointingLayer):
    """A residual attention block, normalised before each branch.

    Args:
        config: of its tower.
    """

    def __init__(self, config: ClipHfTransformerConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = ClipHfAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ClipHfMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Returns (B, L, D) for (B, L, D).

        Args:
            hidden_states: (B, L, D).
            attention_mask: as the implementation of attention takes it, or None.
            positions: (B, N), the positions of each row to return, which makes it (B, N, D); None for all. In the last
                block three quarters of the arithmetic are spent on positions that nobody reads.
            kwargs: `prefixes`, where the hidden states are one row a `Prefixes`, (1, U, D), and hints to the
                implementation.
        """
        attended, _ = self.self_attn(self.layer_norm1(hidden_states), attention_mask, positions, **kwargs)
        hidden_states = select_positions(hidden_states, positions) + attended
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


def init_transformer_module(module: nn.Module) -> None:
    """Draws the weights of an attention or MLP module as the public code does for the text tower.

    Deviations (openai/CLIP clip/model.py:311-321@d05afc4), D the width and N the number of layers: D^-0.5 for queries,
    keys and values, D^-0.5 (2N)^-0.5 for what writes into the residual stream, (2D)^-0.5 for the MLP's first map.
    Attention biases are zero, MLP biases keep torch's default.
    """
    if isinstance(module, ClipHfAttention):
        init.normal_(module.qkv.weight, std=module.config.hidden_size**-0.5)
        init.normal_(module.out_proj.weight, std=_residual_std(module.config))
        init.zeros_(module.qkv.bias)
        init.zeros_(module.out_proj.bias)
    elif isinstance(module, ClipHfMLP):
        init.normal_(module.fc1.weight, std=(2 * module.config.hidden_size) ** -0.5)
        init.normal_(module.fc2.weight, std=_residual_std(module.config))


def _residual_std(config: ClipHfTransformerConfig) -> float:
    return config.hidden_size**-0.5 * (2 * config.num_hidden_layers) ** -0.5
