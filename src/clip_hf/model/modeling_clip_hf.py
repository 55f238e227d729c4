"""CLIP: two towers, two linear projections into one space, a learnable temperature (CLIP paper, figure 3, section 2).

Shapes: B batch (I images, T texts where they differ), L tokens, E joint embedding.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.utils.generic import can_return_tuple

from .chunked_embedding_clip_hf import embed_in_chunks, embed_texts_in_chunks
from .configuration_clip_hf import ClipHfConfig
from .contrastive_loss_clip_hf import contrastive_loss
from .modeling_clip_hf_base import ClipHfPreTrainedModel, normalize_embeds
from .modeling_clip_hf_resnet import ClipHfResNetModel
from .modeling_clip_hf_text import ClipHfTextModel, trim_padding
from .modeling_clip_hf_vit import ClipHfViTModel
from .openai_checkpoint_clip_hf import openai_architecture, read_openai_checkpoint
from .zero_shot_clip_hf import ZeroShotClassifier
from .zero_shot_pipeline_clip_hf import ClipHfZeroShotPipeline

# What a checkpoint's code offers to whoever loads it: the names below travel with this file.
__all__ = [
    "ClipHfModel",
    "ClipHfOutput",
    "ClipHfResNetModel",
    "ClipHfTextModel",
    "ClipHfViTModel",
    "ClipHfZeroShotPipeline",
    "ZeroShotClassifier",
    "trim_padding",
]

# The paper bounds the scale of the logits by 100 "to prevent training instability" (section 2.5).
MAX_SCALE = 100.0
MAX_LOGIT_SCALE = 4.6051697
"""The largest number in float32 whose exponential is not above 100 in float32."""
IMAGE_TOWERS = {"clip_hf_vit": ClipHfViTModel, "clip_hf_resnet": ClipHfResNetModel}


@dataclass
class ClipHfOutput(ModelOutput):
    """What the joint model returns; what a missing modality would have given is None.

    Args:
        loss: (), the symmetric contrastive loss of the batch in nats, where asked for.
        logits_per_image: (I, T), similarities times `scale`.
        logits_per_text: (T, I), its transpose.
        last_hidden_state: of the one tower, where one modality alone was given.
        pooler_output: (B, E), projected and not normalised, where one modality alone was given.
        text_embeds: (T, E), unit length, in float32 at least.
        image_embeds: (I, E), unit length, in float32 at least.
        text_model_output: the text tower's output, its `pooler_output` projected.
        vision_model_output: the image tower's output, its `pooler_output` projected.
        scale: (1,), what similarities are multiplied by: the exponential of `logit_scale`, 100 at most. With one
            modality alone, only where `chunk_sizes` is given: pipelines take every field for one value an input.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    scale: Tensor | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns all values that are not None, outputs of towers as tuples."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class _BoundFromAbove(torch.autograd.Function):
    """min(x, bound), whose gradient at the bound passes only where descent would lower x.

    An ordinary clamp has no gradient beyond its bound, so a parameter that steps over it would stay there for ever.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bound: float) -> Tensor:
        return x.clamp(max=bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, ctx.bound = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient.masked_fill((x >= ctx.bound) & (gradient < 0), 0), None


class ClipHfModel(ClipHfPreTrainedModel):
    """CLIP as published, with a ViT or a modified ResNet as image tower.

    Args:
        config: the towers, the size of the joint space, the initial temperature.
    """

    config: ClipHfConfig
    input_modalities = ("image", "text")
    _keep_in_fp32_modules_strict = ["logit_scale"]

    def __init__(self, config: ClipHfConfig) -> None:
        super().__init__(config)
        self.text_model = ClipHfTextModel._from_config(config.text_config)
        self.vision_model = IMAGE_TOWERS[config.vision_config.model_type]._from_config(config.vision_config)
        # Of shape (1,), not (): DeepSpeed cannot hold parameters without a dimension.
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.post_init()

    @classmethod
    def from_openai(cls, path: str | os.PathLike[str], trust_pickle: bool = False, **kwargs: Any) -> Self:
        """Returns the model of one of OpenAI's .pt files, the architecture read from its shapes.

        Args:
            path: a TorchScript archive, as released (its code is not run), or a state dict.
            trust_pickle: also open a pickle that needs more than tensors, which may run any code.
            kwargs: as in `PreTrainedModel.from_pretrained`: `dtype=torch.float32` for instance. By default the model
                has the type of the file, which is float16 for released ones.

        Raises:
            ValueError: the file is damaged, another model's, or does not hold all weights of a CLIP.
        """
        weights = read_openai_checkpoint(path, trust_pickle)
        try:
            config = ClipHfConfig(**openai_architecture(weights))
            model: Any = cls.from_pretrained(None, config=config, state_dict=weights, **kwargs)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        model.name_or_path = model.config.name_or_path = str(path)
        return model

    @property
    def dtype(self) -> torch.dtype:
        """The type of the towers; the temperature is float32 in any model that `from_pretrained` opens."""
        return self.text_model.dtype

    def get_input_embeddings(self) -> nn.Module:
        """Returns the text tower's token embedding."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the text tower's token embedding, as `resize_token_embeddings` does."""
        self.text_model.set_input_embeddings(value)

    @property
    def scale(self) -> Tensor:
        """What similarities are multiplied by, (1,) in float32: exp(logit_scale), never above 100."""
        return _BoundFromAbove.apply(self.logit_scale.float(), MAX_LOGIT_SCALE).exp()

    @can_return_tuple
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Returns the text tower's output; its `pooler_output` is the projected text feature, not normalised.

        Args:
            input_ids: (B, L), each row with an end-of-text token.
            attention_mask: not needed, see `ClipHfTextModel.forward`.
            kwargs: as in `ClipHfTextModel.forward`.

        Returns:
            `last_hidden_state` (B, L, D) and `pooler_output` (B, E), as transformers 5 does.
        """
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        return _with_projected_feature(output, output.text_embeds)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Returns the image tower's output; its `pooler_output` is the projected image feature, not normalised.

        Args:
            pixel_values: (B, C, H, W), uint8 raw or floating point normalised.
            interpolate_pos_encoding: take images of any size.
            kwargs: as in the image tower's `forward`.

        Returns:
            `last_hidden_state` as the image tower's, and `pooler_output` (B, E), as transformers 5 does.
        """
        output = self.vision_model(
            pixel_values=pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **kwargs,
        )
        return _with_projected_feature(output, output.image_embeds)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        chunk_sizes: tuple[int | None, int | None] | None = None,
        **kwargs: Any,
    ) -> ClipHfOutput:
        """Returns embeddings of texts, of images, or of both with their similarities.

        Args:
            input_ids: (T, L), each row with an end-of-text token.
            pixel_values: (I, C, H, W), uint8 raw or floating point normalised.
            attention_mask: not needed, see `ClipHfTextModel.forward`.
            return_loss: also return the contrastive loss; then text i describes image i. It knows this batch alone:
                `clip_hf.losses.clip_loss` is the loss over the batches of all processes.
            interpolate_pos_encoding: take images of any size.
            chunk_sizes: how many images, and how many texts, to embed at a time, None for all: for training on batches
                whose activations or whose (I, T) logits fit into no memory. The output then has `image_embeds`,
                `text_embeds` and `scale` alone, and the backward pass embeds each chunk again.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, as in transformers.

        Raises:
            TypeError: an argument is unknown.
            ValueError: there is neither text nor image, the loss is asked for without both, or `chunk_sizes` are not
                two, or given with what they leave out.
        """
        if input_ids is None and pixel_values is None:
            raise ValueError("forward got neither input_ids nor pixel_values: give one or both")
        if return_loss and (input_ids is None or pixel_values is None):
            raise ValueError("return_loss=True needs both input_ids and pixel_values")
        if chunk_sizes is not None:
            _check_chunk_sizes(chunk_sizes, {"return_loss": return_loss, **kwargs})
            return self._embed_in_chunks(input_ids, pixel_values, interpolate_pos_encoding, *chunk_sizes)
        fields: dict[str, Any] = {}
        if input_ids is not None:
            output = self.get_text_features(input_ids, attention_mask, return_dict=True, **kwargs)
            fields |= {"text_model_output": output, "text_embeds": normalize_embeds(output.pooler_output)}
        if pixel_values is not None:
            output = self.get_image_features(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs)
            fields |= {"vision_model_output": output, "image_embeds": normalize_embeds(output.pooler_output)}
        if input_ids is None or pixel_values is None:
            fields |= {"last_hidden_state": output.last_hidden_state, "pooler_output": output.pooler_output}
        else:
            fields["scale"] = self.scale
            device = fields["image_embeds"].device  # device_map may give each tower its own
            embeds = fields["image_embeds"], fields["text_embeds"].to(device), fields["scale"].to(device)
            with torch.autocast(device.type, enabled=False):
                logits = embeds[2] * embeds[0] @ embeds[1].T
            fields |= {"logits_per_image": logits, "logits_per_text": logits.T}
            if return_loss:
                fields["loss"] = contrastive_loss(*embeds)
        return ClipHfOutput(**fields)

    def _embed_in_chunks(
        self,
        input_ids: Tensor | None,
        pixel_values: Tensor | None,
        interpolate_pos_encoding: bool,
        image_chunk_size: int | None,
        text_chunk_size: int | None,
    ) -> ClipHfOutput:
        options = {"pooled_only": True, "return_dict": True}
        is_sorted = input_ids is not None and text_chunk_size is not None and text_chunk_size < len(input_ids)

        def embed_images(pixel_values: Tensor) -> Tensor:
            features = self.get_image_features(pixel_values, interpolate_pos_encoding, **options)
            return normalize_embeds(features.pooler_output)

        def embed_texts(input_ids: Tensor) -> Tensor:
            prefixes = self.text_model.find_prefixes(input_ids, is_sorted)
            features = self.get_text_features(input_ids, prefixes=prefixes, **options)
            return normalize_embeds(features.pooler_output)

        fields = {"scale": self.scale}
        if input_ids is not None:
            eos_token_id = self.config.text_config.eos_token_id
            fields["text_embeds"] = embed_texts_in_chunks(embed_texts, input_ids, eos_token_id, text_chunk_size)
        if pixel_values is not None:
            fields["image_embeds"] = embed_in_chunks(embed_images, pixel_values, image_chunk_size)
        return ClipHfOutput(**fields)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Saves the model, and in its configuration what those need who have only the checkpoint.

        Args:
            save_directory: the folder, made if needed.
            args: as in `ClipHfPreTrainedModel.save_pretrained`.
            kwargs: the same, by name.
        """
        auto_map = getattr(self.config, "auto_map", None) or {}  # transformers adds its own entry as it saves
        self.config.auto_map = auto_map | {"AutoModelForZeroShotImageClassification": "modeling_clip_hf.ClipHfModel"}
        super().save_pretrained(save_directory, *args, **kwargs)

    def extend_text_positions(self, max_position_embeddings: int) -> None:
        """Adds text positions: see `ClipHfTextModel.extend_text_positions`."""
        self.text_model.extend_text_positions(max_position_embeddings)
        self.config.text_config.max_position_embeddings = max_position_embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)


def _check_chunk_sizes(chunk_sizes: Sequence[int | None], options: dict[str, Any]) -> None:
    if len(chunk_sizes) != 2 or any(size is not None and size < 1 for size in chunk_sizes):
        raise ValueError(f"chunk_sizes is {chunk_sizes}, but must be two numbers of 1 or more, or None: images, texts")
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise ValueError(
            f"chunk_sizes gives embeddings alone, but {', '.join(given)} came along: leave it out, or pass the "
            "embeddings to clip_hf.losses.clip_loss"
        )


def _with_projected_feature(output: ModelOutput, embeds: Tensor) -> BaseModelOutputWithPooling:
    return BaseModelOutputWithPooling(
        last_hidden_state=output.last_hidden_state,
        pooler_output=embeds,
        hidden_states=output.hidden_states,
        attentions=output.attentions,
    )


ClipHfModel.register_for_auto_class("AutoModel")
