"""Models and inputs small enough for every test."""

import torch
from torch import Tensor

from clip_hf import ClipHfConfig, ClipHfModel

TEXT = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {
    "vit": {
        "model_type": "clip_hf_vit",
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
    },
    "resnet": {"model_type": "clip_hf_resnet", "width": 8, "depths": (1, 2, 1, 1), "image_size": 64},
}
TOWERS = tuple(VISION)


def tiny_config(tower: str, **overrides) -> ClipHfConfig:
    text_config = TEXT | {"max_position_embeddings": 16}
    return ClipHfConfig(text_config=text_config, vision_config=VISION[tower], projection_dim=32, **overrides)


def tiny_model(tower: str, seed: int = 0, **overrides) -> ClipHfModel:
    torch.manual_seed(seed)
    return ClipHfModel(tiny_config(tower, **overrides))


def randomize_batch_norms(model: torch.nn.Module) -> None:
    """Gives every batch norm gains, biases and statistics that show in the output; initial gains of 0 hide errors."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)


def random_pixels(config: ClipHfConfig, batch_size: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = config.vision_config.image_size
    return torch.randn(batch_size, 3, size, size, generator=generator)


def random_ids(config: ClipHfConfig, batch_size: int = 4, seed: int = 0) -> Tensor:
    """Returns ids of texts of different lengths, padded with end-of-text."""
    text = config.text_config
    generator = torch.Generator().manual_seed(seed)
    length = text.max_position_embeddings
    ids = torch.randint(0, text.vocab_size - 2, (batch_size, length), generator=generator)
    ids[:, 0] = text.bos_token_id
    ends = torch.randint(2, length - 1, (batch_size, 1), generator=generator)
    return ids.masked_fill(torch.arange(length) >= ends, text.eos_token_id)
