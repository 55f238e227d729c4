"""The nine released CLIP architectures, and the paper's rule that scales them.

Numbers: CLIP paper (Radford et al. 2021, arXiv 2103.00020), tables 18 to 20.
"""

import math
from typing import Any


def _resnet(projection_dim: int, image_size: int, width: int, depths: tuple[int, ...]) -> dict[str, Any]:
    return {
        "projection_dim": projection_dim,
        "text_config": {"hidden_size": 8 * width},
        "vision_config": {
            "model_type": "clip_hf_resnet",
            "image_size": image_size,
            "width": width,
            "depths": depths,
        },
    }


def _vit(projection_dim: int, image_size: int, patch_size: int, width: int, num_layers: int) -> dict[str, Any]:
    return {
        "projection_dim": projection_dim,
        "text_config": {"hidden_size": projection_dim},
        "vision_config": {
            "model_type": "clip_hf_vit",
            "image_size": image_size,
            "patch_size": patch_size,
            "hidden_size": width,
            "num_hidden_layers": num_layers,
        },
    }


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "RN50": _resnet(1024, 224, 64, (3, 4, 6, 3)),
    "RN101": _resnet(512, 224, 64, (3, 4, 23, 3)),
    "RN50x4": _resnet(640, 288, 80, (4, 6, 10, 6)),
    "RN50x16": _resnet(768, 384, 96, (6, 8, 18, 8)),
    "RN50x64": _resnet(1024, 448, 128, (3, 15, 36, 10)),
    "ViT-B/32": _vit(512, 224, 32, 768, 12),
    "ViT-B/16": _vit(512, 224, 16, 768, 12),
    "ViT-L/14": _vit(768, 224, 14, 1024, 24),
    "ViT-L/14@336px": _vit(768, 336, 14, 1024, 24),
}


def scale_resnet(multiplier: float) -> dict[str, Any]:
    """Returns width, depths and resolution of an image tower with `multiplier` times the compute of RN50.

    The paper (section 2.4) gives the additional compute in equal parts to width, depth and resolution, and widens the
    text Transformer in proportion to the ResNet, its depth fixed. Compute grows with depth, width^2 and resolution^2,
    so depth takes `multiplier^(1/3)`, width and resolution `multiplier^(1/6)` each. Rounding is ours: width to a
    multiple of 16, resolution to one of 32, each stage's depth to the nearest integer.

    Against the released models:
        x4: width 80, resolution 288 and 26 blocks in all are the formula's; the paper has stages (4, 6, 10, 6) where
            the formula gives (5, 6, 10, 5).
        x16: width 96 is the formula's; the paper's resolution 384 (formula: 352) and stages (6, 8, 18, 8) (formula:
            (8, 10, 15, 8)) are its own choice.
        x64: width 128, resolution 448 and 64 blocks in all are the formula's; the paper's stages (3, 15, 36, 10)
            (formula: (12, 16, 24, 12)) are its own choice.
    The text width is 8 times the ResNet's width in all of them. `projection_dim` follows no formula.

    Args:
        multiplier: at least 1, which gives RN50 itself.

    Returns:
        "width", "depths", "image_size" (pixels) and "text_width".

    Raises:
        ValueError: the multiplier is below 1 or not finite.
    """
    if not 1 <= multiplier < math.inf:
        raise ValueError(
            f"the compute multiplier is {multiplier}, but must be a finite number of at least 1 (RN50 itself)"
        )
    width = 16 * round(64 * multiplier ** (1 / 6) / 16)
    return {
        "width": width,
        "depths": tuple(round(depth * multiplier ** (1 / 3)) for depth in (3, 4, 6, 3)),
        "image_size": 32 * round(224 * multiplier ** (1 / 6) / 32),
        "text_width": 8 * width,
    }
