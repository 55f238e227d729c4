"""The text tower: tokens to one feature (CLIP paper, section 2.4).

A causal Transformer; the feature is the top layer's at the first end-of-text token.
Shapes: B batch, L tokens, D width, E joint embedding.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_clip_hf_towers import ClipHfTextConfig
from .conversion_clip_hf import IMAGE_TOWER_KEYS, PROJECTION_KEYS
from .modeling_clip_hf_base import ClipHfPreTrainedModel, require_known_arguments
from .modeling_clip_hf_transformer import (
    ClipHfAttention,
    ClipHfTransformerLayer,
    init_transformer_module,
    select_positions,
)
from .prefixes_clip_hf import Prefixes, find_distinct_prefixes, find_prefixes_of_each_text

TOKEN_STD = 0.02
POSITION_STD = 0.01
LEAST_TEXTS_OF_ACCELERATORS = 256
"""Whose padding is left out: that of fewer is computed before the kernels that leave it out are started."""


def trim_padding(input_ids: Tensor, eos_token_id: int) -> Tensor:
    """Returns the ids without the columns behind the longest text.

    The tower is causal and reads the first end-of-text token, so its features are those of the untrimmed ids. The
    length depends on the data: call this where batches are made, not inside a compiled or exported model.

    Args:
        input_ids: (B, L), each row with an end-of-text token.
        eos_token_id: the end-of-text id.

    Returns:
        (B, M), M the position of the last row's end plus one.

    Raises:
        ValueError: a row has no end-of-text token.
    """
    is_eos = input_ids == eos_token_id
    require_end_of_text(is_eos, eos_token_id)
    return input_ids[:, : int(is_eos.int().argmax(dim=-1).max()) + 1]


def require_end_of_text(is_eos: Tensor, eos_token_id: int) -> None:
    """Raises ValueError unless every row of `is_eos`, (B, L), has a True, and there is one."""
    if not len(is_eos):
        raise ValueError(f"there are no texts, input_ids has the shape {tuple(is_eos.shape)}: give one at least")
    rows = (~is_eos.any(dim=-1)).nonzero().flatten().tolist()
    if rows:
        raise ValueError(
            f"{len(rows)} of {len(is_eos)} texts (first: number {rows[0]}) have no end-of-text token {eos_token_id}, "
            "where the text feature is read: tokenize them with the model's own tokenizer"
        )


def _require_shape(attention_mask: Tensor | None, input_ids: Tensor) -> None:
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but input_ids {tuple(input_ids.shape)}: pass "
            "the mask that the tokenizer gave with the ids, or none"
        )


def _drops(module: nn.Module) -> bool:
    return bool(module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0))


@dataclass
class ClipHfTextOutput(BaseModelOutputWithPooling):
    """What the text tower returns.

    Args:
        last_hidden_state: (B, L, D), layer-normed; None with `pooled_only`.
        pooler_output: (B, D), the text feature before the projection.
        hidden_states: the input and output of every block, where asked for; with `prefixes`, one row a prefix.
        attentions: the attention weights of every block, where asked for.
        text_embeds: (B, E), projected, not normalised; None for a tower without projection.
    """

    text_embeds: Tensor | None = None


class ClipHfTextEmbeddings(nn.Module):
    """Tokens and positions."""

    def __init__(self, config: ClipHfTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Parameter(torch.empty(config.max_position_embeddings, config.hidden_size))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Returns (B, L, D) for ids (B, L).

        Raises:
            ValueError: the texts are longer than the positions.
        """
        length, num_positions = input_ids.shape[-1], self.position_embedding.shape[0]
        if length > num_positions:
            raise ValueError(
                f"the texts are {length} tokens long, but the model has {num_positions} positions: let the tokenizer "
                "truncate them, or add positions with extend_text_positions"
            )
        tokens = self.token_embedding(input_ids)
        return tokens + self.position_embedding[:length].to(tokens.device)  # device_map may divide them


class ClipHfTextModel(ClipHfPreTrainedModel):
    """The text tower, with a projection into the joint space if its configuration names one.

    Opened from a joint checkpoint, it takes the text half of it.

    Args:
        config: widths, depth, vocabulary and positions.
    """

    config: ClipHfTextConfig
    main_input_name = "input_ids"
    input_modalities = ("text",)
    # Not the embeddings: FSDP2 divides the token embedding by itself, as a part of its own.
    _no_split_modules = ["ClipHfTransformerLayer"]
    _can_record_outputs = {"hidden_states": ClipHfTransformerLayer, "attentions": ClipHfAttention}

    def __init__(self, config: ClipHfTextConfig) -> None:
        super().__init__(config)
        self.embeddings = ClipHfTextEmbeddings(config)
        self.layers = nn.ModuleList(ClipHfTransformerLayer(config) for _ in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = (
            nn.Linear(config.hidden_size, config.projection_dim, bias=False) if config.projection_dim else None
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the token embedding."""
        return self.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embedding, as `resize_token_embeddings` does."""
        self.embeddings.token_embedding = value  # type: ignore[assignment]

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pooled_only: bool = False,
        prefixes: Prefixes | None = None,
        **kwargs: Any,
    ) -> ClipHfTextOutput:
        """Returns the feature of each text.

        Args:
            input_ids: (B, L), each row with an end-of-text token; what stands behind the first one never matters.
            attention_mask: taken from tokenizers and not needed: no position sees the padding to its right.
            pooled_only: compute the last block at the ends of the texts alone, and return no `last_hidden_state`.
            prefixes: what `find_prefixes` gives for these texts: only these are computed, no padding. That implies
                `pooled_only`. Hidden states, where asked for, are those of the U prefixes, (1, U, D), and attentions
                those of T texts, on a CPU of the distinct ones, (T, H, L, L).
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, as in transformers.

        Raises:
            TypeError: an argument is unknown.
            ValueError: the mask has another shape than the ids, the prefixes are those of other texts, the
                texts are too long, or one has no end-of-text token. Ids are compared with those of the prefixes, and
                ends looked for, on the CPU alone, as one would have to wait for an accelerator's answer, and not
                under `torch.func`.
        """
        require_known_arguments(self, kwargs)
        _require_shape(attention_mask, input_ids)
        if prefixes is not None:
            prefixes.require_texts(input_ids)
        ends = self._find_ends(input_ids) if prefixes is None else prefixes.ends
        pooled_only = pooled_only or prefixes is not None
        hidden_states = self._run_layers(input_ids, ends if pooled_only else None, prefixes, **kwargs)
        hidden_states = self.final_layer_norm(hidden_states)
        if prefixes is not None:
            feature = prefixes.spread_texts(hidden_states)
        else:
            feature = (hidden_states if pooled_only else select_positions(hidden_states, ends))[:, 0]
        return ClipHfTextOutput(
            last_hidden_state=None if pooled_only else hidden_states,
            pooler_output=feature,
            text_embeds=None if self.projection is None else self.projection(feature),
        )

    def _find_ends(self, input_ids: Tensor) -> Tensor:
        """Returns the place of each text's end, (B, 1)."""
        is_eos = input_ids == self.config.eos_token_id
        is_transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if input_ids.device.type == "cpu" and not is_transformed:
            require_end_of_text(is_eos, self.config.eos_token_id)
        # argmax of equal values gives the first; integers of 64 bits are not among those every exporter can rank.
        return is_eos.int().argmax(dim=-1, keepdim=True)

    def find_prefixes(self, input_ids: Tensor, is_sorted: bool = False) -> Prefixes | None:
        """Returns the prefixes of texts, for `forward`, or None where they would not save time.

        On a CPU they are distinct: each is computed once. With dropout, equal prefixes would not be computed alike,
        and there are none. On an accelerator, which waits for kernels to be started, however few the rows, they are
        for training alone, on 256 texts or more, and those of each text, so that padding is left out: the gradients of
        a row that many share would be added up there in another order each time. Under `torch.func` their number is
        not known. It depends on the data: call this where batches are made, not in a compiled or exported model.

        Args:
            input_ids: (B, L), each row with an end-of-text token.
            is_sorted: they are of like length, and on an accelerator their padding is not worth leaving out.

        Raises:
            ValueError: on a CPU, a row has no end-of-text token.
        """
        eos_token_id = self.config.eos_token_id
        if self.device != input_ids.device or torch._C._are_functorch_transforms_active():
            return None
        if input_ids.device.type != "cpu":
            is_training = self.training and torch.is_grad_enabled()
            is_worth_it = is_training and not is_sorted and len(input_ids) >= LEAST_TEXTS_OF_ACCELERATORS
            return find_prefixes_of_each_text(input_ids, eos_token_id) if is_worth_it else None
        require_end_of_text(input_ids == eos_token_id, eos_token_id)
        has_dropout = self.training and any(map(_drops, self.modules()))
        return None if has_dropout else find_distinct_prefixes(input_ids, eos_token_id)

    def _run_layers(
        self, input_ids: Tensor, positions: Tensor | None, prefixes: Prefixes | None, **kwargs: Any
    ) -> Tensor:
        """Returns the residual stream behind the last block: (B, L, D), one row a prefix, or some positions of it."""
        hidden_states = self.embeddings(input_ids if prefixes is None else prefixes.input_ids)
        causal_mask = create_causal_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=None, past_key_values=None
        )
        if prefixes is not None:
            hidden_states = prefixes.gather(hidden_states)
        kwargs |= {"is_causal": True, "prefixes": prefixes}
        *layers, last = self.layers
        for layer in layers:
            hidden_states = layer(hidden_states, causal_mask, **kwargs)
        return last(hidden_states, causal_mask, positions, **kwargs)

    @torch.no_grad()
    def extend_text_positions(self, max_position_embeddings: int) -> None:
        """Adds positions, so that longer texts fit; the features of texts that fitted before do not change.

        The new positions are drawn as at initialisation: they mean nothing before they are trained.

        Args:
            max_position_embeddings: tokens of the longest text, special tokens counted.

        Raises:
            ValueError: the model has as many positions or more.
        """
        old = self.embeddings.position_embedding
        if max_position_embeddings <= len(old):
            raise ValueError(f"the model has {len(old)} positions already, {max_position_embeddings} were asked for")
        new = old.new_empty(max_position_embeddings - len(old), old.shape[1]).normal_(std=POSITION_STD)
        self.embeddings.position_embedding = nn.Parameter(torch.cat([old, new]), requires_grad=old.requires_grad)
        self.config.max_position_embeddings = max_position_embeddings

    def _other_parts(self) -> tuple[str, ...]:
        return IMAGE_TOWER_KEYS if self.config.projection_dim else (*IMAGE_TOWER_KEYS, *PROJECTION_KEYS)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draws the initial weights of the public code (openai/CLIP clip/model.py:299-326@d05afc4)."""
        super()._init_weights(module)
        init_transformer_module(module)
        if isinstance(module, ClipHfTextEmbeddings):
            init.normal_(module.token_embedding.weight, std=TOKEN_STD)
            init.normal_(module.position_embedding, std=POSITION_STD)
        elif module is self and self.projection is not None:
            init.normal_(self.projection.weight, std=self.config.hidden_size**-0.5)


ClipHfTextModel.register_for_auto_class("AutoModel")
