"""Which weights a text feature was made with: features that are kept must not outlive them."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

# The parts that turn tokens into a text feature, by model type: ours, and transformers' CLIPModel.
TEXT_TOWERS = {"clip_hf": ("text_model",), "clip": ("text_model", "text_projection")}


def check_model(model: PreTrainedModel) -> None:
    """Raises ValueError unless the model is a `ClipHfModel` or transformers' `CLIPModel`."""
    if isinstance(model, str | os.PathLike):
        raise ValueError(f"the model is {model!r:.80}, of type {type(model).__name__}: load it with from_pretrained")
    if model.config.model_type not in TEXT_TOWERS:
        raise ValueError(
            f"{type(model).__name__} is a model of type '{model.config.model_type}', but the type must be one of "
            f"{', '.join(TEXT_TOWERS)}"
        )


def identify_text_weights(model: PreTrainedModel) -> tuple[Any, ...]:
    """Returns what differs whenever the text tower's weights do, in a millisecond and without reading them all.

    Place and version change where weights are replaced or updated. Fused optimisers and writes to `.data` leave both
    as they were, and a cast there and back may; the last value of every tensor shows those.
    """
    weights = [weight for _, weight in _named_text_weights(model)]
    places = [
        (weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype, weight.device)
        for weight in weights
    ]
    # A weight that accelerate keeps elsewhere between two passes is on the meta device and has no value to read.
    alike: dict[Any, list[torch.Tensor]] = {}  # read together: an accelerator is waited for each time
    for weight in weights:
        if not weight.is_meta:
            alike.setdefault((weight.device, weight.dtype), []).append(weight.detach().flatten()[-1])
    return tuple(places), tuple(value for values in alike.values() for value in torch.stack(values).tolist())


def describe_text_tower(model: PreTrainedModel) -> dict[str, str]:
    """Returns the kind of model, and the dtype and a hash of all weights that decide its text features.

    Raises:
        ValueError: weights are offloaded.
    """
    digest = hashlib.sha256()
    for name, weight in _named_text_weights(model):
        if weight.is_meta:
            raise ValueError(f"{name} is offloaded and cannot be read: load the model without offloading")
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return {
        "model_type": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "sha256": digest.hexdigest(),
    }


def _named_text_weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for part in TEXT_TOWERS[model.config.model_type]:
        yield from model.get_submodule(part).named_parameters(prefix=part)
