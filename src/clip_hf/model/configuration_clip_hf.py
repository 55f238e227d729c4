"""What a CLIP model is: two towers and one embedding space (CLIP paper, arXiv 2103.00020, section 2)."""

# No `from __future__ import annotations` here: it turns the type checks of `@strict` off without a word.

import copy
import math
from typing import Any, ClassVar, Self

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import SubConfigSpec

from .architectures_clip_hf import ARCHITECTURES, scale_resnet
from .configuration_clip_hf_towers import (
    ClipHfBaseConfig,
    ClipHfImageConfig,
    ClipHfResNetConfig,
    ClipHfTextConfig,
    ClipHfViTConfig,
)

IMAGE_CONFIGS: dict[str, type[ClipHfImageConfig]] = {
    config_class.model_type: config_class for config_class in (ClipHfViTConfig, ClipHfResNetConfig)
}
TOWER_CONFIGS: dict[str, tuple[type[ClipHfBaseConfig], ...]] = {
    "text_config": (ClipHfTextConfig,),
    "vision_config": tuple(IMAGE_CONFIGS.values()),
}

# What a checkpoint says of its pipeline to those who have only the checkpoint.
CUSTOM_PIPELINES = {
    "zero-shot-image-classification": {
        "impl": "zero_shot_pipeline_clip_hf.ClipHfZeroShotPipeline",
        "pt": ["AutoModelForZeroShotImageClassification"],
        "type": "multimodal",
    }
}


class ImageConfigSpec(SubConfigSpec):
    """Picks the image tower's class by `model_type`, from our own table: remote code has no entry in transformers'."""

    def get_config_class(self, model_type: str | None = None) -> type[ClipHfImageConfig]:
        """Returns the class of a `model_type`."""
        if model_type not in IMAGE_CONFIGS:
            raise ValueError(
                f"vision_config.model_type is '{model_type}', but an image tower is one of {', '.join(IMAGE_CONFIGS)}"
            )
        return IMAGE_CONFIGS[model_type]


@strict
class ClipHfConfig(ClipHfBaseConfig):
    """Configuration of a CLIP model: one text tower, one image tower, one embedding space.

    Args:
        text_config: a `ClipHfTextConfig`, or a dictionary of its fields.
        vision_config: a `ClipHfViTConfig` or `ClipHfResNetConfig`, or a dictionary of one's fields with its
            `model_type` ("clip_hf_vit" if not given).
        projection_dim: size of the joint embedding space. A tower configuration that names a size must agree.
        logit_scale_init_value: initial logarithm of the scale that multiplies similarities, ln(1 / 0.07).

    Raises:
        ValueError: a tower is of another kind, or its `projection_dim` differs from the joint one.
    """

    model_type = "clip_hf"
    sub_configs_defaults: ClassVar = {
        "text_config": ClipHfTextConfig,
        "vision_config": ImageConfigSpec(config_class=object, model_type=ClipHfViTConfig.model_type),
    }

    text_config: Any = None
    vision_config: Any = None
    projection_dim: int = 512
    logit_scale_init_value: float | int = math.log(1 / 0.07)

    def __post_init__(self, **kwargs: Any) -> None:
        """Builds the towers' configurations and gives them the size of the joint space."""
        if not type(self).__module__.startswith("transformers_modules."):
            # transformers refuses a checkpoint's own pipeline without trust_remote_code; here ours is installed.
            kwargs.pop("custom_pipelines", None)
        for key, config_classes in TOWER_CONFIGS.items():
            _require_tower(key, getattr(self, key), config_classes)
        super().__post_init__(**kwargs)
        for key in self.sub_configs_defaults:
            tower_config = getattr(self, key)
            if tower_config.projection_dim is None:
                tower_config = copy.deepcopy(tower_config)  # the caller's object stays as it was
                tower_config.projection_dim = self.projection_dim
                setattr(self, key, tower_config)
        self.validate_towers()

    def validate_towers(self) -> None:
        """Raises ValueError where the towers do not project into the same space."""
        self.require_positive("projection_dim")
        for key in self.sub_configs_defaults:
            tower_config = getattr(self, key)
            tower_config.validate()
            if tower_config.projection_dim != self.projection_dim:
                raise ValueError(
                    f"{key}.projection_dim is {tower_config.projection_dim}, but projection_dim is "
                    f"{self.projection_dim}: leave the tower's out, or make them equal"
                )

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields, and the pipelines that come with a checkpoint.

        Whatever this object holds of them is not saved: transformers puts classes there as it builds a pipeline.
        """
        return super().to_dict() | {"custom_pipelines": copy.deepcopy(CUSTOM_PIPELINES)}

    @property
    def hidden_size(self) -> int:
        """Width of the wider tower, by which DeepSpeed's "auto" entries size their buckets."""
        return max(self.text_config.hidden_size, self.vision_config.hidden_size)

    @classmethod
    def from_architecture(cls, name: str, **overrides: Any) -> Self:
        """Returns the configuration of a released architecture.

        Args:
            name: one of `ARCHITECTURES`: "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16",
                "ViT-L/14", "ViT-L/14@336px".
            overrides: fields of `ClipHfConfig`; dictionaries under `text_config` and `vision_config` replace single
                fields of the towers.

        Raises:
            ValueError: the name is unknown.
        """
        if name not in ARCHITECTURES:
            raise ValueError(f"unknown architecture '{name}'; the known ones are {', '.join(ARCHITECTURES)}")
        return cls._from_fields(ARCHITECTURES[name], overrides)

    @classmethod
    def from_compute_multiplier(cls, multiplier: float, **overrides: Any) -> Self:
        """Returns RN50 scaled to `multiplier` times its compute, by the paper's rule (`scale_resnet`).

        Args:
            multiplier: compute of the image tower relative to RN50, at least 1.
            overrides: as in `from_architecture`, `projection_dim` above all: the paper's choices follow no formula.

        Raises:
            ValueError: the multiplier is below 1 or not finite.
        """
        scaled = scale_resnet(multiplier)
        text_width = scaled.pop("text_width")
        vision_config = {"model_type": ClipHfResNetConfig.model_type, **scaled}
        fields = {"projection_dim": 1024, "text_config": {"hidden_size": text_width}, "vision_config": vision_config}
        return cls._from_fields(fields, overrides)

    @classmethod
    def _from_fields(cls, fields: dict[str, Any], overrides: dict[str, Any]) -> Self:
        """Returns the configuration with single fields overridden, those of the towers, too."""
        merged = fields | overrides
        for key in cls.sub_configs_defaults:
            if isinstance(override := merged[key], dict):
                merged[key] = fields[key] | override
        return cls(**merged)


def _require_tower(key: str, config: Any, config_classes: tuple[type[ClipHfBaseConfig], ...]) -> None:
    # By name: a checkpoint's own code has other classes than the installed package.
    known = {config_class.model_type for config_class in config_classes}
    if config is None or isinstance(config, dict) or getattr(config, "model_type", None) in known:
        return
    allowed = " or ".join(config_class.__name__ for config_class in config_classes)
    raise ValueError(
        f"{key} is a {type(config).__name__}, but must be a {allowed} or a dictionary of its fields; "
        "ClipHfConfig.from_pretrained translates the configuration of another implementation's checkpoint"
    )


ClipHfConfig.register_for_auto_class()
