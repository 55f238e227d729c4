"""Which parameters decay, at which learning rate, and Adam's numbers (CLIP paper, section 2.5, tables 18 to 20)."""

from typing import Any

import torch
from torch import Tensor, nn

# Adam's beta2 and epsilon by kind of image tower.
ADAM_DEFAULTS = {"clip_hf_vit": (0.98, 1e-6), "clip_hf_resnet": (0.999, 1e-8)}
TOWERS = ("vision_model", "text_model")
LAYERS = ("ClipHfTransformerLayer", "ClipHfBottleneck")  # in the order of the forward pass
BELOW_LAYERS = ("embeddings", "pre_layernorm", "stem")


def decay_parameter_names(model: nn.Module) -> list[str]:
    """Returns the names of the parameters that decay: those of two dimensions or more.

    The paper decays all weights that are not gains or biases. What has one dimension is a gain, a bias, the class
    embedding or the temperature; matrices, kernels, and token and position embeddings have more.
    """
    return [name for name, parameter in model.named_parameters() if len(_whole_shape(parameter)) >= 2]


def split_by_tower(
    groups: list[dict[str, Any]], model: nn.Module, learning_rates: dict[str, float | None]
) -> list[dict[str, Any]]:
    """Returns an optimizer's groups, divided so that each tower has its own learning rate.

    Args:
        groups: `optimizer.param_groups`.
        model: the model whose parameters they hold.
        learning_rates: peak learning rate of a tower, by its name in `TOWERS`; None keeps the optimizer's.

    Returns:
        the groups; what belongs to no tower comes first, since transformers logs the first group's learning rate.
    """
    tower_of = {id(parameter): _tower(name) for name, parameter in model.named_parameters()}
    divided = []
    for tower in (None, *TOWERS):
        learning_rate = learning_rates.get(tower) if tower else None
        for group in groups:
            parameters = [parameter for parameter in group["params"] if tower_of[id(parameter)] == tower]
            if parameters:
                divided.append({**group, "params": parameters})
                set_rate(divided[-1], group["lr"] if learning_rate is None else learning_rate)
    return divided


def set_rate(group: dict[str, Any], learning_rate: Any) -> None:
    """Gives one of an optimizer's groups another rate: a new tensor, where the optimizer holds rates in tensors.

    Args:
        group: of `optimizer.param_groups`.
        learning_rate: a number, or a tensor of one.
    """
    is_tensor = isinstance(group["lr"], Tensor)
    group["lr"] = torch.full_like(group["lr"], float(learning_rate)) if is_tensor else learning_rate


def tower_of_group(group: dict[str, Any], model: nn.Module) -> str | None:
    """Returns the tower that a group of `split_by_tower` belongs to, None for what is in no tower."""
    first = group["params"][0]
    return next(_tower(name) for name, parameter in model.named_parameters() if parameter is first)


def split_by_layer(groups: list[dict[str, Any]], model: nn.Module, layer_decay: float) -> list[dict[str, Any]]:
    """Returns an optimizer's groups, divided so that each layer's rate is `layer_decay` times that of the layer above.

    What comes after a tower's last layer has the tower's own rate, its last layer the first share of it, and what
    comes before its first layer the least (BEiT, arXiv 2106.08254, appendix).

    Args:
        groups: `optimizer.param_groups`, of one tower each.
        model: the model whose parameters they hold.
        layer_decay: between 0 and 1.
    """
    depths = _depths(model)
    divided = []
    for group in groups:
        for depth in sorted({depths[id(parameter)] for parameter in group["params"]}):
            parameters = [parameter for parameter in group["params"] if depths[id(parameter)] == depth]
            divided.append({**group, "params": parameters})
            set_rate(divided[-1], group["lr"] * layer_decay**depth)
    return divided


def _depths(model: nn.Module) -> dict[int, int]:
    """Returns how many layers below its tower's output each parameter lies, by the parameter's id."""
    layers: dict[str | None, list[str]] = {}
    for name, module in model.named_modules():
        if type(module).__name__ in LAYERS:
            layers.setdefault(_tower(name), []).append(name)
    depths = {}
    for name, parameter in model.named_parameters():
        own = layers.get(_tower(name), [])
        index = next((index for index, layer in enumerate(own) if name.startswith(f"{layer}.")), None)
        if index is not None:
            depths[id(parameter)] = len(own) - index
        else:
            depths[id(parameter)] = len(own) + 1 if any(part in name.split(".") for part in BELOW_LAYERS) else 0
    return depths


def _whole_shape(parameter: Tensor) -> tuple[int, ...]:
    # ZeRO-3 leaves an empty vector in place of a parameter, with the parameter's own shape beside it.
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _tower(name: str) -> str | None:
    # The name is one part of the path, wherever wrappers and adapters put it.
    return next((tower for tower in TOWERS if tower in name.split(".")), None)
