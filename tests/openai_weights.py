"""Small CLIPs in OpenAI's layout, and the files that hold such weights."""

import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.model import published_clip

# OpenAI's layout implies heads of 64 channels.
SHAPES = {
    "vit": {"width": 64, "patch_size": 8, "grid": 4, "layers": 2},
    "resnet": {"width": 8, "depths": (1, 2, 1, 1), "grid": 2},
}
IMAGE_SIZES = {"vit": 32, "resnet": 64}
POSITIONS, VOCAB_SIZE = 16, 530


def openai_weights(tower: str, seed: int = 0) -> dict[str, Tensor]:
    """Returns random weights as released: norms and embeddings in float32, the rest in float16, and three numbers."""
    torch.manual_seed(seed)
    weights = published_clip.random_weights(
        32, text_width=64, text_layers=2, vocab_size=VOCAB_SIZE, positions=POSITIONS, **SHAPES[tower]
    )
    weights = {name: _as_released(name, tensor) for name, tensor in weights.items()}
    numbers = {"input_resolution": IMAGE_SIZES[tower], "context_length": POSITIONS, "vocab_size": VOCAB_SIZE}
    return weights | {name: torch.tensor(number) for name, number in numbers.items()}


def _as_released(name: str, tensor: Tensor) -> Tensor:
    """Rounds what `convert_weights` of OpenAI's code rounds (clip/model.py:375-396@d05afc4)."""
    if not tensor.is_floating_point():
        return tensor
    is_kept = re.search(r"(^|\.)(ln_\w+|bn\d|downsample\.1)\.|embedding|logit_scale", name)
    return tensor.float() if is_kept else tensor.half()


def save_archive(weights: dict[str, Tensor], path: Path) -> None:
    """Writes a TorchScript archive whose modules are nested as the names say, with a method as released ones have."""
    root = nn.Module()
    for name, tensor in weights.items():
        *folders, leaf = name.split(".")
        module = root
        for folder in folders:
            if folder not in module._modules:
                module.add_module(folder, nn.Module())
            module = module._modules[folder]
        if tensor.is_floating_point() and "running" not in leaf:
            module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(leaf, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the files are there
        torch.jit.script(root).save(str(path))
