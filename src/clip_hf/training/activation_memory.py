"""What autograd keeps of an input until its backward pass, counted on the meta device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.modeling_clip_hf import ClipHfModel
from clip_hf.model.modeling_clip_hf_vit import ClipHfViTModel


def saved_bytes(
    config: ClipHfConfig, text_length: int, patch_dropout: float = 0.0, activation_checkpointing: bool = False
) -> tuple[float, float]:
    """Returns the bytes that autograd keeps of an image, and of a text, until their backward pass, in float32.

    Args:
        config: of the model.
        text_length: in tokens.
        patch_dropout: share of the patches that a ViT leaves out.
        activation_checkpointing: keep the input of each layer, and what one layer at a time saves.
    """
    vision = config.vision_config
    with torch.device("meta"):
        model = ClipHfModel(config).train()
        if patch_dropout:
            cast(ClipHfViTModel, model.vision_model).embeddings.patch_dropout = patch_dropout

        def image_bytes(number: int) -> int:
            pixels = torch.empty(number, vision.num_channels, vision.image_size, vision.image_size)
            with _counting(model.vision_model, activation_checkpointing) as count:
                _ = model.vision_model(pixel_values=pixels, pooled_only=True)
            return count()

        def text_bytes(number: int) -> int:
            ids = torch.empty(number, text_length, dtype=torch.long)
            with _counting(model.text_model, activation_checkpointing) as count:
                _ = model.text_model(input_ids=ids, pooled_only=True)
            return count()

        # What two more take: parameters and buffers, which are saved as well, do not count.
        return (image_bytes(4) - image_bytes(2)) / 2, (text_bytes(4) - text_bytes(2)) / 2


@contextmanager
def _counting(tower: nn.Module, activation_checkpointing: bool) -> Iterator[Callable[[], int]]:
    """Yields what counts the bytes of all storages that autograd saves, or would if layers were computed again."""
    saved: dict[int, int] = {}
    kept: list[Tensor] = []  # or storages would be freed, and their addresses be given to others
    inputs: list[int] = []
    layers: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        kept.append(tensor)
        return tensor

    def begin(layer: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append(args[0].untyped_storage().nbytes())
        layers.append(-sum(saved.values()))

    def end(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        layers[-1] += sum(saved.values())

    def count() -> int:
        if not activation_checkpointing:
            return sum(saved.values())
        return sum(saved.values()) - sum(layers) + sum(inputs) + max(layers)

    found = [module for module in tower.modules() if isinstance(module, GradientCheckpointingLayer)]
    hooks = [hook for one in found for hook in (one.register_forward_pre_hook(begin), one.register_forward_hook(end))]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield count
    for hook in hooks:
        hook.remove()
