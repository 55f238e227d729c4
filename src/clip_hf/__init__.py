"""CLIP as published, as Hugging Face classes.

Importing this package registers its classes with transformers' Auto classes and pipelines. What only training needs is
imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
)

from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.configuration_clip_hf_towers import ClipHfResNetConfig, ClipHfTextConfig, ClipHfViTConfig
from clip_hf.model.image_processing_clip_hf import (
    IMAGE_PROCESSOR_CLASSES,
    ClipHfImageProcessor,
    ClipHfImageProcessorTorch,
    ClipHfImageProcessorTorchvision,
)
from clip_hf.model.modeling_clip_hf import ClipHfModel
from clip_hf.model.modeling_clip_hf_resnet import ClipHfResNetModel
from clip_hf.model.modeling_clip_hf_text import ClipHfTextModel
from clip_hf.model.modeling_clip_hf_vit import ClipHfViTModel
from clip_hf.model.processing_clip_hf import ClipHfProcessor
from clip_hf.model.tokenization_clip_hf import ClipHfTokenizer
from clip_hf.model.zero_shot_clip_hf import ZeroShotClassifier
from clip_hf.model.zero_shot_pipeline_clip_hf import ClipHfZeroShotPipeline, register_zero_shot_pipeline

if TYPE_CHECKING:
    from clip_hf.training.trainer import ClipTrainer
    from clip_hf.training.training_args import ClipTrainingArguments

__version__ = "0.1.0"

__all__ = [
    "ClipHfConfig",
    "ClipHfImageProcessor",
    "ClipHfImageProcessorTorch",
    "ClipHfImageProcessorTorchvision",
    "ClipHfModel",
    "ClipHfProcessor",
    "ClipHfResNetConfig",
    "ClipHfResNetModel",
    "ClipHfTextConfig",
    "ClipHfTextModel",
    "ClipHfTokenizer",
    "ClipHfViTConfig",
    "ClipHfViTModel",
    "ClipHfZeroShotPipeline",
    "ClipTrainer",
    "ClipTrainingArguments",
    "ZeroShotClassifier",
]

_MODULE_OF_LAZY_NAME = {
    "ClipTrainer": "clip_hf.training.trainer",
    "ClipTrainingArguments": "clip_hf.training.training_args",
}


def __getattr__(name: str) -> Any:
    """Imports what training needs when it is first asked for."""
    if name not in _MODULE_OF_LAZY_NAME:
        raise AttributeError(f"module 'clip_hf' has no attribute '{name}'")
    return getattr(import_module(_MODULE_OF_LAZY_NAME[name]), name)


def _push_to_hub(model: ClipHfModel, repo_id: str, **options: Any) -> str:
    """Pushes the model as `clip_hf.hub.models.push_model` does, and returns its address."""
    return import_module("clip_hf.hub.models").push_model(model, repo_id, **options)


def _register() -> None:
    for config_class, model_class in (
        (ClipHfConfig, ClipHfModel),
        (ClipHfTextConfig, ClipHfTextModel),
        (ClipHfViTConfig, ClipHfViTModel),
        (ClipHfResNetConfig, ClipHfResNetModel),
    ):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(ClipHfConfig, ClipHfModel, exist_ok=True)
    AutoProcessor.register(ClipHfConfig, ClipHfProcessor, exist_ok=True)
    for config_class in (ClipHfConfig, ClipHfTextConfig):
        AutoTokenizer.register(config_class, tokenizer_class=ClipHfTokenizer, exist_ok=True)
    for config_class in (ClipHfConfig, ClipHfViTConfig, ClipHfResNetConfig):
        AutoImageProcessor.register(config_class, image_processor_classes=dict(IMAGE_PROCESSOR_CLASSES), exist_ok=True)
    register_zero_shot_pipeline()
    # The files of the model travel, and know nothing of pages and retries.
    ClipHfModel.push_to_hub = _push_to_hub


_register()
